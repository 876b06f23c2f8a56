// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package health

import (
	"crypto/x509"
	"time"

	"k8s.io/component-base/metrics"

	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/pki"
)

// Metrics are the metrics of a Monitor. The values of their labels are names of registered clusters
// and fixed words. The series of a cluster are deleted when it is removed, and all series when the
// replica stops being the leader.
type Metrics struct {
	ready       *metrics.GaugeVec
	credential  *metrics.GaugeVec
	certificate *metrics.GaugeVec
	// Alerts compare what is left of a lifetime with it, as the reason ExpiresSoon does.
	credentialLifetime  *metrics.GaugeVec
	certificateLifetime *metrics.GaugeVec
	probes              *metrics.CounterVec
	probeDuration       *metrics.HistogramVec
	writes              *metrics.CounterVec
}

// Values of the label certificate.
const (
	certificateAPIServer = "apiserver"
	certificateAgent     = "agent"
)

// NewMetrics returns new metrics. Register each of All before you use them.
func NewMetrics() *Metrics {
	gauge := func(name, help string, labels ...string) *metrics.GaugeVec {
		return metrics.NewGaugeVec(&metrics.GaugeOpts{Namespace: "cluster_gateway", Name: name, Help: help, StabilityLevel: metrics.ALPHA}, labels)
	}
	counter := func(name, help string, labels ...string) *metrics.CounterVec {
		return metrics.NewCounterVec(&metrics.CounterOpts{Namespace: "cluster_gateway", Name: name, Help: help, StabilityLevel: metrics.ALPHA}, labels)
	}
	return &Metrics{
		ready:      gauge("ready", "Whether the last probe of a cluster found it ready (1) or not (0). Only the leader reports it.", "cluster"),
		credential: gauge("credential_expiration_timestamp_seconds", "When the credential in a cluster's Secret expires, in Unix time. There is no series if it is not known. Only the leader reports it.", "cluster"),
		certificate: gauge("certificate_expiration_timestamp_seconds",
			"When a certificate of a cluster expires, in Unix time: the certificate of its API server, or of its connected agents the one that expires first. Only the leader reports it.", "cluster", "certificate"),
		credentialLifetime: gauge("credential_lifetime_seconds", "How long the credential in a cluster's Secret is valid in total. There is no series if it is not known. Only the leader reports it.", "cluster"),
		certificateLifetime: gauge("certificate_lifetime_seconds",
			"How long a certificate of cluster_gateway_certificate_expiration_timestamp_seconds is valid in total. Only the leader reports it.", "cluster", "certificate"),
		probeDuration: metrics.NewHistogramVec(&metrics.HistogramOpts{
			Namespace: "cluster_gateway", Name: "health_probe_duration_seconds", Buckets: metrics.ExponentialBuckets(0.001, 2, 14), StabilityLevel: metrics.ALPHA,
			Help: "Time that probes of clusters took, by outcome (success, failure).",
		}, []string{"result"}),
		probes: counter("health_probes_total", "Finished probes of clusters, by outcome (success, failure).", "result"),
		writes: counter("health_writes_total", "Writes of the health of a cluster to its Secret, by outcome (success, failure).", "result"),
	}
}

// All lists the metrics, to register them.
func (m *Metrics) All() []metrics.Registerable {
	return []metrics.Registerable{
		m.ready, m.credential, m.certificate, m.credentialLifetime, m.certificateLifetime, m.probes, m.probeDuration, m.writes,
	}
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
	if lifetime, ok := lifetime(c.Credential); ok {
		m.credentialLifetime.WithLabelValues(c.Name).Set(lifetime.Seconds())
	} else {
		m.credentialLifetime.Delete(map[string]string{"cluster": c.Name})
	}
	m.setCertificate(c.Name, certificateAPIServer, o.certificate, o.err != nil)
	m.setCertificate(c.Name, certificateAgent, o.agent, false)
}

// lifetime returns how long a credential is valid in total. It reports false if that is not known.
func lifetime(c cluster.Credential) (time.Duration, bool) {
	begin, begins := c.Begin()
	expiry, expires := c.Expiry()
	return expiry.Sub(begin), begins && expires && begin.Before(expiry)
}

// took records how long a probe took.
func (m *Metrics) took(err error, elapsed time.Duration) {
	m.probeDuration.WithLabelValues(result(err)).Observe(elapsed.Seconds())
}

// setCertificate sets the metrics of a certificate. If the certificate is not known, keep says
// whether the last value stays.
func (m *Metrics) setCertificate(cluster, certificate string, cert *x509.Certificate, keep bool) {
	switch {
	case cert != nil:
		m.certificate.WithLabelValues(cluster, certificate).Set(float64(cert.NotAfter.Unix()))
		lifetime := cert.NotAfter.Sub(cert.NotBefore)
		if certificate == certificateAgent { // it is valid from before it was issued
			lifetime = pki.Lifetime(cert)
		}
		m.certificateLifetime.WithLabelValues(cluster, certificate).Set(lifetime.Seconds())
	case !keep:
		m.certificate.Delete(map[string]string{"cluster": cluster, "certificate": certificate})
		m.certificateLifetime.Delete(map[string]string{"cluster": cluster, "certificate": certificate})
	}
}

func (m *Metrics) wrote(err error) { m.writes.WithLabelValues(result(err)).Inc() }

func (m *Metrics) drop(cluster string) {
	// One by one, because a match by the cluster alone looks at the series of all clusters.
	series := map[string]string{"cluster": cluster}
	m.ready.Delete(series)
	m.credential.Delete(series)
	m.credentialLifetime.Delete(series)
	for _, certificate := range []string{certificateAPIServer, certificateAgent} {
		m.setCertificate(cluster, certificate, nil, false)
	}
}

// reset deletes the series that another replica reports from now on.
func (m *Metrics) reset() {
	m.ready.Reset()
	m.credential.Reset()
	m.certificate.Reset()
	m.credentialLifetime.Reset()
	m.certificateLifetime.Reset()
}
