// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package memory

import "github.com/prometheus/client_golang/prometheus"

var _ prometheus.Collector = (*Budget)(nil)

// descriptions describe the metrics of a Budget.
type descriptions struct{ total, used, refusals *prometheus.Desc }

func newDescriptions() descriptions {
	const prefix, use = "cluster_gateway_memory_", "use"
	return descriptions{
		total: prometheus.NewDesc(prefix+"budget_bytes",
			"[ALPHA] Memory that clients and clusters can make the gateway hold (--memory-budget).", nil, nil),
		used: prometheus.NewDesc(prefix+"used_bytes",
			"[ALPHA] Memory that is taken from the budget, by use (requests, streams, bodies, tunnels, unauthenticated).", []string{use}, nil),
		refusals: prometheus.NewDesc(prefix+"refusals_total",
			"[ALPHA] How often there was not enough left in the budget, by use.", []string{use}, nil),
	}
}

// Describe implements prometheus.Collector.
func (b *Budget) Describe(ch chan<- *prometheus.Desc) {
	ch <- b.descriptions.total
	ch <- b.descriptions.used
	ch <- b.descriptions.refusals
}

// Collect implements prometheus.Collector.
func (b *Budget) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.MustNewConstMetric(b.descriptions.total, prometheus.GaugeValue, float64(b.total))
	for use, p := range b.parts {
		b.mu.Lock()
		used, refusals := p.used, p.refusals
		b.mu.Unlock()
		ch <- prometheus.MustNewConstMetric(b.descriptions.used, prometheus.GaugeValue, float64(used), string(use))
		ch <- prometheus.MustNewConstMetric(b.descriptions.refusals, prometheus.CounterValue, float64(refusals), string(use))
	}
}
