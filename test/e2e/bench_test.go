// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"slices"
	"testing"
	"time"

	"k8s.io/client-go/rest"
)

// BenchmarkGET measures a warm GET of a Namespace by every route. Rounds alternate with the same
// GET sent directly to the managed API server. It reports the median and its ratio to the direct
// one (×). Run it with `make bench`.
func BenchmarkGET(b *testing.B) {
	for _, r := range shared.routes() {
		b.Run(r.name, func(b *testing.B) {
			straight := benchClient(b, r.target.RESTConfig())
			through := benchClient(b, r.gateway.ClusterRESTConfig(r.cluster, r.door))
			for range 50 { // warm
				timeGet(b, straight)
				timeGet(b, through)
			}
			var direct, routed []time.Duration
			for b.Loop() {
				direct = append(direct, timeGet(b, straight))
				routed = append(routed, timeGet(b, through))
			}
			slices.Sort(direct)
			slices.Sort(routed)
			d, g := direct[len(direct)/2], routed[len(routed)/2]
			b.ReportMetric(float64(d.Microseconds()), "direct-µs")
			b.ReportMetric(float64(g.Microseconds()), "median-µs")
			b.ReportMetric(float64(g)/float64(d), "×")
			b.ReportMetric(0, "ns/op") // the sum of both, which means nothing
		})
	}
}

func benchClient(b *testing.B, config *rest.Config) *rawClient {
	b.Helper()
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(client.CloseIdleConnections)
	return &rawClient{http: client, base: config.Host}
}

func timeGet(b *testing.B, c *rawClient) time.Duration {
	began := time.Now()
	a, err := c.get(b.Context(), namespacePath)
	if err != nil || a.code != 200 {
		b.Fatalf("%d %s (%v)", a.code, a.body, err)
	}
	return time.Since(began)
}
