// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	apimetrics "k8s.io/apiserver/pkg/endpoints/metrics"

	"github.com/oam-dev/cluster-gateway/pkg/rotation"
)

// TestMetricsOfAnAPIServer checks that the gateway serves the metrics of every Kubernetes API
// server together with its own.
func TestMetricsOfAnAPIServer(t *testing.T) {
	t.Parallel()
	handler, err := metricsHandler(nil, rotation.NewMetrics().All())
	if err != nil {
		t.Fatal(err)
	}
	// It counts a request in a metric of the library. Metrics that are not registered count nothing.
	apimetrics.RecordDroppedRequest(httptest.NewRequest(http.MethodGet, "/apis", nil), nil, apimetrics.APIServerComponent, false)
	answer := httptest.NewRecorder()
	handler.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for _, want := range []string{"\napiserver_request_total{", "\ngo_goroutines ", "\nprocess_cpu_seconds_total "} {
		if !strings.Contains(answer.Body.String(), want) {
			t.Errorf("there is no metric%s", want)
		}
	}
}
