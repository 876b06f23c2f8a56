// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"net/http"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/component-base/metrics"
	"k8s.io/component-base/metrics/legacyregistry"
)

// metricsHandler serves the gateway's metrics from a registry of this server's own, together with those that the libraries keep
// in the process-wide one.
func metricsHandler(all ...[]metrics.Registerable) (http.Handler, error) {
	own := metrics.NewKubeRegistry()
	for _, metric := range slices.Concat(all...) {
		if err := own.Register(metric); err != nil {
			return nil, err
		}
	}
	return promhttp.HandlerFor(prometheus.Gatherers{legacyregistry.DefaultGatherer, own}, promhttp.HandlerOpts{}), nil
}
