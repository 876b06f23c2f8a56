// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import "k8s.io/component-base/metrics"

// Metrics are the metrics of the proxy and of the connections that it establishes. Every label is
// bounded: the registered clusters, two routes, a fixed set of verbs, HTTP status codes, and the
// stages of package dialer.
type Metrics struct {
	requests        *metrics.CounterVec
	requestDuration *metrics.HistogramVec
	inFlight        *metrics.GaugeVec
	dials           *metrics.CounterVec
	dialDuration    *metrics.HistogramVec
	connections     *metrics.GaugeVec
	agents          *metrics.GaugeVec
	agentsRefused   *metrics.CounterVec
	tunnelStreams   *metrics.GaugeVec
	tunnelUpgrades  *metrics.CounterVec
	agentsFailing   *metrics.GaugeVec
	transports      *metrics.Gauge
	identityRefused *metrics.CounterVec
	streamsRevoked  *metrics.CounterVec
	turnsWaiting    *metrics.Gauge
	turnsWaited     *metrics.Counter
}

const metricsNamespace = "cluster_gateway"

// NewMetrics returns the metrics. They record nothing until each of All is registered with a
// registry.
func NewMetrics() *Metrics {
	counter := func(name, help string, labels ...string) *metrics.CounterVec {
		return metrics.NewCounterVec(&metrics.CounterOpts{
			Namespace: metricsNamespace, Name: name, Help: help, StabilityLevel: metrics.ALPHA,
		}, labels)
	}
	gauge := func(name, help string, labels ...string) *metrics.GaugeVec {
		return metrics.NewGaugeVec(&metrics.GaugeOpts{
			Namespace: metricsNamespace, Name: name, Help: help, StabilityLevel: metrics.ALPHA,
		}, labels)
	}
	histogram := func(name, help string, buckets []float64, labels ...string) *metrics.HistogramVec {
		return metrics.NewHistogramVec(&metrics.HistogramOpts{
			Namespace: metricsNamespace, Name: name, Help: help, Buckets: buckets, StabilityLevel: metrics.ALPHA,
		}, labels)
	}
	return &Metrics{
		requests: counter("requests_total",
			"Proxied requests that have ended, by cluster, route, Kubernetes verb and HTTP status code "+
				"(499: the client closed the request; 0: the answer ended before it was complete).",
			"cluster", "route", "verb", "code"),
		requestDuration: histogram("request_duration_seconds",
			"Time from the arrival of a proxied request to the end of its answer, without long-running requests.",
			metrics.ExponentialBuckets(0.001, 2, 17), "cluster", "route", "verb"),
		inFlight: gauge("requests_in_flight",
			"Proxied requests in flight, including long-running ones.",
			"cluster", "route"),
		dials: counter("dials_total",
			"Attempts to connect to managed API servers, by the stage at which they failed "+
				"(tunnel, agent, endpoint, tls; empty on success) and the result.",
			"cluster", "route", "stage", "result"),
		dialDuration: histogram("dial_duration_seconds",
			"Time to establish a connection to a managed API server, including TLS.",
			metrics.ExponentialBuckets(0.001, 2, 15), "cluster", "route"),
		connections: gauge("connections",
			"Open connections to managed API servers, including those through a tunnel.",
			"cluster", "route"),
		agents: gauge("tunnel_agents",
			"Agents connected to the embedded tunnel server.",
			"cluster"),
		agentsRefused: counter("tunnel_agents_refused_total",
			"Streams and connections of agents that were refused because of --tunnel-max-agents, or because their certificates were revoked.",
			"cluster"),
		tunnelStreams: gauge("tunnel_streams",
			"Streams of agents at the embedded tunnel server, by state "+
				"(requests, upgrades; parked: open, and not used yet).",
			"cluster", "state"),
		tunnelUpgrades: counter("tunnel_upgrades_total",
			"Upgraded connections through the embedded tunnel server, by stream "+
				"(own: with flow control up to the endpoint; shared: more upgrades started at the same time than the agents had streams for).",
			"cluster", "stream"),
		identityRefused: counter("identity_refusals_total",
			"Requests that were refused because the identity of their caller is not carried to the cluster, by reason.",
			"cluster", "reason"),
		streamsRevoked: counter("streams_revoked_total",
			"Long-running requests that the gateway ended because their caller has lost the permission.",
			"cluster", "route"),
		agentsFailing: gauge("tunnel_agent_failing",
			"1 for each agent whose connections fail while another agent of the cluster works. The label agent is the ID that the agent claims.",
			"cluster", "agent"),
		turnsWaiting: metrics.NewGauge(&metrics.GaugeOpts{
			Namespace: metricsNamespace, Name: "requests_waiting_for_turn", StabilityLevel: metrics.ALPHA,
			Help: "Requests that wait, because this gateway is short of CPU time and their caller has too many others in progress.",
		}),
		turnsWaited: metrics.NewCounter(&metrics.CounterOpts{
			Namespace: metricsNamespace, Name: "requests_waited_for_turn_total", StabilityLevel: metrics.ALPHA,
			Help: "Requests that have waited, because this gateway was short of CPU time and their caller had too many others in progress.",
		}),
		transports: metrics.NewGauge(&metrics.GaugeOpts{
			Namespace: metricsNamespace, Name: "transports", StabilityLevel: metrics.ALPHA,
			Help: "Cached transports, including those that still serve requests after their cluster has changed.",
		}),
	}
}

// All returns the metrics, to register them.
func (m *Metrics) All() []metrics.Registerable {
	return []metrics.Registerable{
		m.requests, m.requestDuration, m.inFlight, m.dials, m.dialDuration, m.connections, m.agents, m.agentsRefused,
		m.tunnelStreams, m.tunnelUpgrades, m.agentsFailing, m.transports,
		m.identityRefused,
		m.streamsRevoked, m.turnsWaiting, m.turnsWaited,
	}
}

// AgentRefused records that an agent of a cluster was refused because of the limit of agents.
func (m *Metrics) AgentRefused(cluster string) { m.agentsRefused.WithLabelValues(cluster).Inc() }

// SetTunnelStreams records how many streams the agents of a cluster have.
func (m *Metrics) SetTunnelStreams(cluster string, requests, upgrades, parked int) {
	if requests+upgrades+parked == 0 {
		// One by one, because a match by the cluster alone looks at the series of all clusters. All of
		// them lose their agents when the gateway stops.
		for _, state := range []string{"requests", "upgrades", "parked"} {
			m.tunnelStreams.Delete(map[string]string{"cluster": cluster, "state": state})
		}
		return
	}
	m.tunnelStreams.WithLabelValues(cluster, "requests").Set(float64(requests))
	m.tunnelStreams.WithLabelValues(cluster, "upgrades").Set(float64(upgrades))
	m.tunnelStreams.WithLabelValues(cluster, "parked").Set(float64(parked))
}

// TunnelUpgrade records an upgraded connection through the tunnel. own reports whether it has a
// stream to itself.
func (m *Metrics) TunnelUpgrade(cluster string, own bool) {
	stream := "shared"
	if own {
		stream = "own"
	}
	m.tunnelUpgrades.WithLabelValues(cluster, stream).Inc()
}

// SetAgentFailing records whether the connections of an agent fail.
func (m *Metrics) SetAgentFailing(cluster, agent string, failing bool) {
	if !failing {
		m.agentsFailing.Delete(map[string]string{"cluster": cluster, "agent": agent})
		return
	}
	m.agentsFailing.WithLabelValues(cluster, agent).Set(1)
}

// SetAgents records how many agents of a cluster are connected.
func (m *Metrics) SetAgents(cluster string, n int) {
	if n == 0 {
		m.agents.Delete(map[string]string{"cluster": cluster})
		return
	}
	m.agents.WithLabelValues(cluster).Set(float64(n))
}
