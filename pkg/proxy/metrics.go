// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"strconv"
	"sync"
	"time"

	"k8s.io/component-base/metrics"
)

// Metrics are the measurements of the proxy and of the dials it makes. Every label is bounded: clusters that are registered,
// two routes, a fixed set of verbs, HTTP status codes, and the stages of package dialer.
type Metrics struct {
	requests        *metrics.CounterVec
	requestDuration *metrics.HistogramVec
	inFlight        *metrics.GaugeVec
	dials           *metrics.CounterVec
	dialDuration    *metrics.HistogramVec
	connections     *metrics.GaugeVec
	agents          *metrics.GaugeVec
	transports      *metrics.Gauge
}

const metricsNamespace = "cluster_gateway"

// NewMetrics makes the metrics; register each of All with a registry, or they stay silent.
func NewMetrics() *Metrics {
	counter := func(name, help string, labels ...string) *metrics.CounterVec {
		return metrics.NewCounterVec(&metrics.CounterOpts{Namespace: metricsNamespace, Name: name, Help: help, StabilityLevel: metrics.ALPHA}, labels)
	}
	gauge := func(name, help string, labels ...string) *metrics.GaugeVec {
		return metrics.NewGaugeVec(&metrics.GaugeOpts{Namespace: metricsNamespace, Name: name, Help: help, StabilityLevel: metrics.ALPHA}, labels)
	}
	histogram := func(name, help string, buckets []float64, labels ...string) *metrics.HistogramVec {
		return metrics.NewHistogramVec(&metrics.HistogramOpts{Namespace: metricsNamespace, Name: name, Help: help, Buckets: buckets, StabilityLevel: metrics.ALPHA}, labels)
	}
	return &Metrics{
		requests: counter("requests_total", "Proxied requests that have ended, by cluster, route, Kubernetes verb and HTTP status code (499: the client went away; 0: the answer broke off).",
			"cluster", "route", "verb", "code"),
		requestDuration: histogram("request_duration_seconds", "Time from the arrival of a proxied request to the end of its answer; without watches, followed logs and upgrades.",
			metrics.ExponentialBuckets(0.001, 2, 17), "cluster", "route", "verb"),
		inFlight: gauge("requests_in_flight", "Proxied requests under way, watches and upgrades included.", "cluster", "route"),
		dials: counter("dials_total", "Connections to managed API servers that were tried, by the stage at which they ended (tunnel, agent, endpoint, tls; empty on success) and the result.",
			"cluster", "route", "stage", "result"),
		dialDuration: histogram("dial_duration_seconds", "Time to establish a connection to a managed API server, TLS included.",
			metrics.ExponentialBuckets(0.001, 2, 15), "cluster", "route"),
		connections: gauge("connections", "Open connections to managed API servers; over a tunnel these are its open connections.", "cluster", "route"),
		agents:      gauge("tunnel_agents", "Agents connected to the embedded tunnel server.", "cluster"),
		transports: metrics.NewGauge(&metrics.GaugeOpts{Namespace: metricsNamespace, Name: "transports",
			Help: "Cached transports, those that still serve requests after their cluster has changed included.", StabilityLevel: metrics.ALPHA}),
	}
}

// All lists the metrics, to register them.
func (m *Metrics) All() []metrics.Registerable {
	return []metrics.Registerable{m.requests, m.requestDuration, m.inFlight, m.dials, m.dialDuration, m.connections, m.agents, m.transports}
}

// SetAgents records how many agents of a cluster are connected.
func (m *Metrics) SetAgents(cluster string, n int) {
	if n == 0 {
		m.agents.Delete(map[string]string{"cluster": cluster})
		return
	}
	m.agents.WithLabelValues(cluster).Set(float64(n))
}

// series are the metrics of one registered cluster. They end with it: what is still under way then is not counted any more, so
// that it does not bring back what was dropped.
type series struct {
	metrics *Metrics
	cluster string

	mu   sync.RWMutex
	gone bool
}

// record calls f unless the cluster is gone.
func (s *series) record(f func(m *Metrics)) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if !s.gone {
		f(s.metrics)
	}
}

func (s *series) began(route string) {
	s.record(func(m *Metrics) { m.inFlight.WithLabelValues(s.cluster, route).Inc() })
}

func (s *series) ended(route string, k kind, code int, elapsed time.Duration) {
	s.record(func(m *Metrics) {
		m.inFlight.WithLabelValues(s.cluster, route).Dec()
		m.requests.WithLabelValues(s.cluster, route, k.verb, strconv.Itoa(code)).Inc()
		if !k.longRunning {
			m.requestDuration.WithLabelValues(s.cluster, route, k.verb).Observe(elapsed.Seconds())
		}
	})
}

// refused counts a request that was not sent.
func (s *series) refused(route string, k kind, code int) {
	s.record(func(m *Metrics) { m.requests.WithLabelValues(s.cluster, route, k.verb, strconv.Itoa(code)).Inc() })
}

func (s *series) dialled(route, stage, result string, elapsed time.Duration) {
	s.record(func(m *Metrics) {
		m.dials.WithLabelValues(s.cluster, route, stage, result).Inc()
		m.dialDuration.WithLabelValues(s.cluster, route).Observe(elapsed.Seconds())
	})
}

func (s *series) connected(route string, n float64) {
	s.record(func(m *Metrics) { m.connections.WithLabelValues(s.cluster, route).Add(n) })
}

// end drops the series.
func (s *series) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gone = true
	match := map[string]string{"cluster": s.cluster}
	s.metrics.requests.DeletePartialMatch(match)
	s.metrics.requestDuration.DeletePartialMatch(match)
	s.metrics.inFlight.DeletePartialMatch(match)
	s.metrics.dials.DeletePartialMatch(match)
	s.metrics.dialDuration.DeletePartialMatch(match)
	s.metrics.connections.DeletePartialMatch(match)
}
