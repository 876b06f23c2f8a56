// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import "github.com/prometheus/client_golang/prometheus"

var limitUsage = prometheus.NewDesc("cluster_gateway_limit_used_ratio",
	"[ALPHA] Part of a limit that is used, by cluster and limit (requests: --proxy-max-requests-inflight; streams: --proxy-max-streams; "+
		"dials: 64 for each cluster, and --proxy-max-dials for all of them together, with an empty cluster). There is no series if nothing is used.",
	[]string{"cluster", "limit"}, nil)

var _ prometheus.Collector = (*Handler)(nil)

// Describe implements prometheus.Collector.
func (h *Handler) Describe(descriptions chan<- *prometheus.Desc) { descriptions <- limitUsage }

// Collect implements prometheus.Collector. It reports how much of each limit is used, when it is
// asked.
func (h *Handler) Collect(values chan<- prometheus.Metric) {
	report := func(cluster, limit string, used, of int) {
		if used > 0 && of > 0 {
			values <- prometheus.MustNewConstMetric(limitUsage, prometheus.GaugeValue, float64(used)/float64(of), cluster, limit)
		}
	}
	t := h.table
	report("", "dials", len(t.dials), cap(t.dials))
	t.mu.RLock()
	defer t.mu.RUnlock()
	for name, s := range t.slots {
		s.mu.Lock()
		n := s.inFlight
		s.mu.Unlock()
		report(name, "requests", n.requests(), t.limits.requests)
		report(name, "streams", n.streams(), t.limits.streams)
		report(name, "dials", len(s.gate.own), cap(s.gate.own))
	}
}
