// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package peers

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// Outcomes of forwarding.
const (
	// OutcomeAnswered is an answer of the other replica, whatever it says.
	OutcomeAnswered = "answered"
	// OutcomeNoAgent is a request that no replica could take, because none has an agent any more.
	OutcomeNoAgent = "no_agent"
	// OutcomeUnreachable is a request for which no connection to a replica could be made.
	OutcomeUnreachable = "unreachable"
	// OutcomeFailed is a request whose connection broke before its answer, or whose client has left.
	OutcomeFailed = "failed"
)

// Metrics are the metrics of Peers.
type Metrics struct {
	requests   *prometheus.CounterVec
	count, age prometheus.Collector
	peers      atomic.Pointer[Peers]
}

// NewMetrics returns the metrics. They belong to one Peers.
func NewMetrics() *Metrics {
	const namespace = "cluster_gateway"
	m := &Metrics{requests: prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: namespace, Name: "peer_requests_total",
		Help: "[ALPHA] Requests forwarded to other replicas, by outcome (answered; no_agent: no replica has an agent any more; unreachable: no connection to a replica; failed: the connection broke, or the client left).",
	}, []string{"outcome"})}
	m.count = prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: namespace, Name: "peers", Help: "[ALPHA] Other replicas of the gateway that are present.",
	}, func() float64 { n, _ := m.known(); return n })
	m.age = prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: namespace, Name: "peers_oldest_renewal_seconds", Help: "[ALPHA] Time since the last renewal of the present replica whose renewal is the oldest.",
	}, func() float64 { _, age := m.known(); return age })
	return m
}

// All returns the metrics, to register them.
func (m *Metrics) All() []prometheus.Collector {
	return []prometheus.Collector{m.requests, m.count, m.age}
}

func (m *Metrics) observe(p *Peers) { m.peers.Store(p) }

func (m *Metrics) known() (n, age float64) {
	p := m.peers.Load()
	if p == nil {
		return 0, 0
	}
	present, oldest := p.known()
	return float64(present), oldest.Seconds()
}

func (m *Metrics) forwarded(outcome string) { m.requests.WithLabelValues(outcome).Inc() }
