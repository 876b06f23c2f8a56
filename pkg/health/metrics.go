// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package health

import (
	"crypto/x509"

	"k8s.io/component-base/metrics"

	"github.com/oam-dev/cluster-gateway/pkg/cluster"
)

// Metrics are the measurements of a Monitor. Labels are clusters that are registered and fixed words; series of a cluster end with it,
// and all of them with the term of the replica that leads.
type Metrics struct {
	ready       *metrics.GaugeVec
	credential  *metrics.GaugeVec
	certificate *metrics.GaugeVec
	probes      *metrics.CounterVec
	writes      *metrics.CounterVec
}

// Values of the label certificate.
const (
	certificateAPIServer = "apiserver"
	certificateAgent     = "agent"
)

// NewMetrics makes the metrics; each of All must be registered with a registry before they are used.
func NewMetrics() *Metrics {
	gauge := func(name, help string, labels ...string) *metrics.GaugeVec {
		return metrics.NewGaugeVec(&metrics.GaugeOpts{Namespace: "cluster_gateway", Name: name, Help: help, StabilityLevel: metrics.ALPHA}, labels)
	}
	counter := func(name, help string, labels ...string) *metrics.CounterVec {
		return metrics.NewCounterVec(&metrics.CounterOpts{Namespace: "cluster_gateway", Name: name, Help: help, StabilityLevel: metrics.ALPHA}, labels)
	}
	return &Metrics{
		ready:      gauge("ready", "Whether the last probe of a cluster found it ready (1) or not (0). Told by the replica that leads.", "cluster"),
		credential: gauge("credential_expiration_timestamp_seconds", "When the credential in a cluster's Secret ends, in Unix time; no series when it does not say. Told by the replica that leads.", "cluster"),
		certificate: gauge("certificate_expiration_timestamp_seconds",
			"When a certificate on the way to a cluster ends, in Unix time: that of its API server, or the first to end of its connected agents. Told by the replica that leads.", "cluster", "certificate"),
		probes: counter("health_probes_total", "Probes of clusters that have ended, by outcome (success, failure).", "result"),
		writes: counter("health_writes_total", "Patches of Secrets with the health of a cluster, by outcome (success, failure).", "result"),
	}
}

// All lists the metrics, to register them.
func (m *Metrics) All() []metrics.Registerable {
	return []metrics.Registerable{m.ready, m.credential, m.certificate, m.probes, m.writes}
}

func result(err error) string {
	if err != nil {
		return "failure"
	}
	return "success"
}

func (m *Metrics) probed(c *cluster.Cluster, o *observation) {
	value := 0.0
	if c.Err() == nil && o.err == nil {
		value = 1
	}
	m.ready.WithLabelValues(c.Name).Set(value)
	m.probes.WithLabelValues(result(o.err)).Inc()
	if expiry, ok := c.Credential.Expiry(); ok {
		m.credential.WithLabelValues(c.Name).Set(float64(expiry.Unix()))
	} else {
		m.credential.Delete(map[string]string{"cluster": c.Name})
	}
	m.setCertificate(c.Name, certificateAPIServer, o.certificate, o.err != nil)
	m.setCertificate(c.Name, certificateAgent, o.agent, false)
}

// setCertificate keeps what is known of a certificate while it cannot be asked.
func (m *Metrics) setCertificate(cluster, certificate string, cert *x509.Certificate, keep bool) {
	switch {
	case cert != nil:
		m.certificate.WithLabelValues(cluster, certificate).Set(float64(cert.NotAfter.Unix()))
	case !keep:
		m.certificate.Delete(map[string]string{"cluster": cluster, "certificate": certificate})
	}
}

func (m *Metrics) wrote(err error) { m.writes.WithLabelValues(result(err)).Inc() }

func (m *Metrics) drop(cluster string) {
	match := map[string]string{"cluster": cluster}
	m.ready.DeletePartialMatch(match)
	m.credential.DeletePartialMatch(match)
	m.certificate.DeletePartialMatch(match)
}

// endTerm drops what another replica tells from now on.
func (m *Metrics) endTerm() {
	m.ready.Reset()
	m.credential.Reset()
	m.certificate.Reset()
}
