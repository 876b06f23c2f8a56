// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"crypto/x509"
	"net/http"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/component-base/metrics"
	"k8s.io/component-base/metrics/legacyregistry"
)

// metricsHandler serves the gateway's metrics from a registry of this server's own, together with those that the libraries keep
// in the process-wide one.
func metricsHandler(raw []prometheus.Collector, all ...[]metrics.Registerable) (http.Handler, error) {
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

// certificateMetrics tell when the certificates end that the gateway makes for the tunnel.
func (s *Server) certificateMetrics() []prometheus.Collector {
	k := s.tunnels.certificates
	if k == nil {
		return nil
	}
	gauge := func(certificate string, get func() *x509.Certificate) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Namespace: "cluster_gateway", Name: "tunnel_certificate_expiration_timestamp_seconds",
			Help:        "[ALPHA] When the tunnel server's serving certificate, or the CA of the tunnel, ends, in Unix time; 0 while it has not been read.",
			ConstLabels: prometheus.Labels{"certificate": certificate},
		}, func() float64 {
			if cert := get(); cert != nil {
				return float64(cert.NotAfter.Unix())
			}
			return 0
		})
	}
	return []prometheus.Collector{gauge("serving", k.Serving), gauge("ca", func() *x509.Certificate {
		if a := k.Authority(); a != nil {
			return a.Certificate()
		}
		return nil
	})}
}
