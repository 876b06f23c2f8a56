// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"testing"
	"time"

	"k8s.io/component-base/metrics"
)

// TestManyClustersLoseTheirAgents checks that the time to forget the streams of a cluster does not
// grow with the number of clusters: all of them lose their agents when the gateway stops.
func TestManyClustersLoseTheirAgents(t *testing.T) {
	m := NewMetrics()
	registry := metrics.NewKubeRegistry()
	for _, metric := range m.All() {
		registry.MustRegister(metric)
	}
	const clusters, some = 20_000, 1_000
	name := func(i int) string { return "cluster-" + itoa(i) }
	for i := range clusters {
		m.SetTunnelStreams(name(i), 1, 2, 3)
	}
	began := time.Now()
	for i := range some {
		m.SetTunnelStreams(name(i), 3, 2, 1)
	}
	set := time.Since(began)
	began = time.Now()
	for i := range some {
		m.SetTunnelStreams(name(i), 0, 0, 0)
	}
	if forgotten := time.Since(began); forgotten > 30*set {
		t.Errorf("the streams of %d clusters among %d were forgotten in %s, and set in %s", some, clusters, forgotten, set)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	left := 0
	for _, family := range families {
		if family.GetName() == "cluster_gateway_tunnel_streams" {
			left = len(family.Metric)
		}
	}
	if want := 3 * (clusters - some); left != want {
		t.Errorf("%d series are left; wanted %d", left, want)
	}
}
