// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"crypto/x509"
	"net/http"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/apiserver/pkg/server/mux"
	"k8s.io/apiserver/pkg/server/routes"
	"k8s.io/component-base/metrics"
	"k8s.io/component-base/metrics/legacyregistry"

	"github.com/oam-dev/cluster-gateway/pkg/pki"
)

// metricsHandler serves the gateway's metrics from a registry of its own, together with those that
// libraries register in the process-wide registry.
func metricsHandler(raw []prometheus.Collector, all ...[]metrics.Registerable) (http.Handler, error) {
	// The library registers the metrics of an API server when it installs its own handler, which has
	// no place for another registry.
	routes.DefaultMetrics{}.Install(mux.NewPathRecorderMux("metrics"))
	own := metrics.NewKubeRegistry()
	for _, metric := range slices.Concat(all...) {
		if err := own.Register(metric); err != nil {
			return nil, err
		}
	}
	for _, c := range raw {
		own.RawMustRegister(c)
	}
	return promhttp.HandlerFor(prometheus.Gatherers{legacyregistry.DefaultGatherer, own}, promhttp.HandlerOpts{}), nil
}

// certificateMetrics report when the certificates that this process serves expire, and their CAs,
// whoever renews them.
func (s *Server) certificateMetrics() []prometheus.Collector {
	gauge := func(name, help, certificate string, get func() *x509.Certificate) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Namespace: "cluster_gateway", Name: name + "_certificate_expiration_timestamp_seconds",
			Help:        "[ALPHA] When " + help + " expires, in Unix time. 0 if it has not been read yet.",
			ConstLabels: prometheus.Labels{"certificate": certificate},
		}, func() float64 {
			if cert := get(); cert != nil {
				return float64(cert.NotAfter.Unix())
			}
			return 0
		})
	}
	const tunnelHelp, servingHelp = "the serving certificate of the tunnel server, the CA of the tunnel, or the CA of agents' certificates,", "the certificate of the gateway's own HTTPS endpoint, or its CA,"
	var all []prometheus.Collector
	if s.embedded != nil {
		c := s.embedded.certificates
		all = append(all, gauge("tunnel", tunnelHelp, "serving", c.serving), gauge("tunnel", tunnelHelp, "ca", c.ca), gauge("tunnel", tunnelHelp, "agents-ca", c.agentsCA))
	}
	if s.embedded != nil {
		all = append(all, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Namespace: "cluster_gateway", Name: "tunnel_agents_with_tunnel_ca_certificate",
			Help: "[ALPHA] Number of agents that are connected to this replica with a certificate from the tunnel's CA, and not from the CA of agents' certificates. 0 if there is no such CA.",
		}, func() float64 { return float64(s.embedded.withTunnelCACertificate()) }))
	}
	all = append(all, gauge("serving", servingHelp, "serving", s.currentServingCertificate))
	if s.certificate != nil {
		all = append(all, gauge("serving", servingHelp, "ca", func() *x509.Certificate { return currentCA(s.certificate.keeper) }))
	}
	return all
}

// currentServingCertificate returns the certificate of the gateway's own HTTPS endpoint. It is nil
// until it has been read.
func (s *Server) currentServingCertificate() *x509.Certificate {
	if info := s.generic.SecureServingInfo; info != nil && info.Cert != nil {
		cert, _ := info.Cert.CurrentCertKeyContent()
		return firstCertificate(cert)
	}
	return nil
}

// firstCertificate returns the first certificate of a PEM text. It is nil if there is none.
func firstCertificate(text []byte) *x509.Certificate {
	certs, err := pki.ParseCertificates(text)
	if err != nil {
		return nil
	}
	return certs[0]
}
