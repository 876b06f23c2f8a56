// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package health

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"syscall"
	"testing"
	"time"

	"k8s.io/component-base/metrics"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/dialer"
	"github.com/oam-dev/cluster-gateway/pkg/proxy"
)

// BenchmarkIdleFleet measures the CPU time of a probe over TLS and HTTP/2, including the API
// server's side, which runs in the same process. From it, it derives the share of a core that 200
// clusters need at the default interval.
func BenchmarkIdleFleet(b *testing.B) {
	const fleet = 200
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }))
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	h := &hub{}
	clusters := map[string]*cluster.Cluster{}
	proxyMetrics, registry := proxy.NewMetrics(), metrics.NewKubeRegistry()
	for _, m := range proxyMetrics.All() {
		registry.MustRegister(m)
	}
	handler := proxy.NewHandler(proxy.Config{Clusters: getter(clusters), Metrics: proxyMetrics, Dialers: func(c *cluster.Cluster, _ dialer.Purpose) (dialer.Dialer, error) {
		return dialer.New(c.Name, (&net.Dialer{}).DialContext), nil
	}})
	defer handler.Close()
	own := NewMetrics()
	for _, m := range own.All() {
		registry.MustRegister(m)
	}
	r := &run{cfg: &Config{Clusters: getterList{getter(clusters), h}, Prober: handler, Metrics: own, Interval: DefaultInterval, Timeout: DefaultTimeout}, clusters: map[string]*tracked{}}
	var all []*tracked
	for i := range fleet {
		s := secretOf(fmt.Sprintf("c%d", i), v1alpha1.EndpointTypeConst)
		s.Data["endpoint"] = []byte(server.URL)
		s.Annotations[v1alpha1.AnnotationInsecureSkipTLSVerify] = "true"
		c := cluster.Parse(s, cluster.ParseOptions{})
		clusters[c.Name] = c
		k := &tracked{name: c.Name, index: -1, fingerprint: c.Fingerprint(), versionAt: time.Now()}
		all = append(all, k)
		r.probe(b.Context(), k) // connects
	}
	before := cpu()
	for b.Loop() {
		for _, k := range all {
			r.probe(b.Context(), k)
		}
	}
	probe := (cpu() - before) / time.Duration(b.N*fleet)
	b.ReportMetric(float64(probe.Microseconds()), "cpu-µs/probe")
	b.ReportMetric(100*fleet*probe.Seconds()/DefaultInterval.Seconds(), "%core/200clusters")
}

type getter map[string]*cluster.Cluster

func (g getter) Get(name string) (*cluster.Cluster, bool) { c, ok := g[name]; return c, ok }

type getterList struct {
	getter
	*hub
}

func (g getterList) Get(name string) (*cluster.Cluster, bool) { return g.getter.Get(name) }

func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
