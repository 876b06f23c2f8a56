// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package rotation

import "k8s.io/component-base/metrics"

// Metrics are the metrics of all renewals of a process. They are safe for concurrent use.
type Metrics struct{ renewals *metrics.CounterVec }

// Values of the label task.
const (
	taskTokens       = "tokens"
	taskAgent        = "agent"
	taskRegistration = "registration"
)

// NewMetrics returns new metrics. They record nothing until each of All is registered.
func NewMetrics() *Metrics {
	return &Metrics{renewals: metrics.NewCounterVec(&metrics.CounterOpts{
		Namespace: "cluster_gateway", Name: "renewals_total", StabilityLevel: metrics.ALPHA,
		Help: "Renewals in managed clusters that have ended, by task (tokens; agent: the certificate of the agent and the tunnel CA; registration: the check of the cluster CA and of rights) " +
			"and result (success; failure; early: it failed, and is not due yet, or somebody else must renew).",
	}, []string{"task", "result"})}
}

// All returns the metrics, to register them.
func (m *Metrics) All() []metrics.Registerable { return []metrics.Registerable{m.renewals} }

// ended records the result of a renewal. It does nothing if m is nil.
func (m *Metrics) ended(task string, err error) {
	if m == nil {
		return
	}
	result := "success"
	switch {
	case err == nil:
	case urgent(err):
		result = "failure"
	default:
		result = "early"
	}
	m.renewals.WithLabelValues(task, result).Inc()
}
