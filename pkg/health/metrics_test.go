// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package health

import (
	"crypto/x509"
	"errors"
	"testing"
	"time"

	"k8s.io/component-base/metrics"

	"github.com/oam-dev/cluster-gateway/pkg/cluster"
)

// registered returns metrics and the registry that they are registered with.
func registered(t *testing.T) (*Metrics, metrics.KubeRegistry) {
	t.Helper()
	all, registry := NewMetrics(), metrics.NewKubeRegistry()
	for _, m := range all.All() {
		registry.MustRegister(m)
	}
	return all, registry
}

// gathered returns the values of a metric by the value of a label. Of a histogram, it is the number
// of observations.
func gathered(t *testing.T, registry metrics.KubeRegistry, name, label string) map[string]float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, m := range family.Metric {
			for _, l := range m.Label {
				if l.GetName() == label {
					values[l.GetValue()] = m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
				}
			}
		}
	}
	return values
}

// TestLifetimes checks that the lifetime of a certificate is reported and deleted together with its
// expiry.
func TestLifetimes(t *testing.T) {
	t.Parallel()
	all, registry := registered(t)
	begin := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	secret := tunneled("edge")
	// {"iat":1700000000,"exp":1700007200}
	secret.Data["token"] = []byte("eyJhbGciOiJub25lIn0.eyJpYXQiOjE3MDAwMDAwMDAsImV4cCI6MTcwMDAwNzIwMH0.c2ln")
	c := cluster.Parse(secret, cluster.ParseOptions{})
	o := &observation{cluster: c, certificate: &x509.Certificate{NotBefore: begin, NotAfter: begin.Add(time.Hour)}}
	all.probed(c, o)
	const name = "cluster_gateway_certificate_lifetime_seconds"
	if got := gathered(t, registry, name, "certificate"); len(got) != 1 || got[certificateAPIServer] != 3600 {
		t.Errorf("the lifetimes are %v", got)
	}
	const credentials = "cluster_gateway_credential_lifetime_seconds"
	if got := gathered(t, registry, credentials, "cluster"); len(got) != 1 || got["edge"] != 7200 {
		t.Errorf("the lifetimes of credentials are %v", got)
	}
	unknown := cluster.Parse(tunneled("edge"), cluster.ParseOptions{})
	all.probed(unknown, &observation{cluster: unknown})
	if got := gathered(t, registry, credentials, "cluster"); len(got) != 0 {
		t.Errorf("the lifetimes of credentials that do not say it are %v", got)
	}
	if got := gathered(t, registry, name, "certificate"); len(got) != 0 {
		t.Errorf("without a certificate, the lifetimes are %v", got)
	}
	o.agent = o.certificate
	all.probed(c, o)
	all.drop("edge")
	if got := gathered(t, registry, credentials, "cluster"); len(got) != 0 {
		t.Errorf("without the cluster, the lifetimes of credentials are %v", got)
	}
	if got := gathered(t, registry, name, "certificate"); len(got) != 0 {
		t.Errorf("without the cluster, the lifetimes are %v", got)
	}
}

// TestProbesAreTimed checks that each probe of a valid cluster is observed once, with its outcome,
// also if its failure is not reported yet.
func TestProbesAreTimed(t *testing.T) {
	all, registry := registered(t)
	h := newHub(t, func(c *Config) { c.Metrics, c.Interval = all, time.Hour })
	h.set(tunneled("a"))
	h.run(t)
	const name = "cluster_gateway_health_probe_duration_seconds"
	h.eventually(t, "a success", func() bool { return gathered(t, registry, name, "result")["success"] == 1 })
	h.fail("b", errors.New("broken"))
	h.set(tunneled("b"))
	h.eventually(t, "a failure", func() bool { return gathered(t, registry, name, "result")["failure"] >= 1 })
}
