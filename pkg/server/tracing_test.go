// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"encoding/hex"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
)

// collector is an OpenTelemetry collector.
type collector struct {
	coltracepb.UnimplementedTraceServiceServer
	requests chan *coltracepb.ExportTraceServiceRequest
}

// Export implements TraceServiceServer.
func (c *collector) Export(_ context.Context, r *coltracepb.ExportTraceServiceRequest) (*coltracepb.ExportTraceServiceResponse, error) {
	c.requests <- r
	return &coltracepb.ExportTraceServiceResponse{}, nil
}

// tracesTo returns traces that are sent to c, by a configuration that records none but those of
// other replicas.
func tracesTo(t *testing.T, c *collector) *traces {
	t.Helper()
	lis, server := listen(t), grpc.NewServer()
	coltracepb.RegisterTraceServiceServer(server, c)
	served := make(chan error)
	go func() { served <- server.Serve(lis) }()
	t.Cleanup(func() {
		server.Stop()
		<-served
	})
	o := NewGenericOptions()
	o.Tracing.ConfigFile = filepath.Join(t.TempDir(), "tracing.yaml")
	text := "apiVersion: apiserver.config.k8s.io/v1\nkind: TracingConfiguration\nendpoint: " + lis.Addr().String() + "\n"
	if err := os.WriteFile(o.Tracing.ConfigFile, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	traces, err := newTraces(t.Context(), o, "pod-a")
	if err != nil {
		t.Fatal(err)
	}
	return traces
}

// TestTracesReachTheCollector continues the trace of another replica, and stops at once: the last
// spans are sent, under the gateway's name.
func TestTracesReachTheCollector(t *testing.T) {
	const trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	c := &collector{requests: make(chan *coltracepb.ExportTraceServiceRequest, 10)}
	traces := tracesTo(t, c)
	handler := traces.withForwarded(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }))
	for _, sampled := range []string{"00", "01"} {
		req := httptest.NewRequest(http.MethodGet, "/", http.NoBody)
		req.Pattern = "/" // as set by the mux for other replicas
		req.Header.Set("Traceparent", "00-"+trace+"-"+parent+"-"+sampled)
		handler.ServeHTTP(httptest.NewRecorder(), req)
	}
	traces.close()
	if len(c.requests) != 1 {
		t.Fatalf("the collector got %d requests", len(c.requests))
	}
	resource := (<-c.requests).GetResourceSpans()[0]
	attributes := map[string]string{}
	for _, a := range resource.GetResource().GetAttributes() {
		attributes[a.GetKey()] = a.GetValue().GetStringValue()
	}
	if attributes["service.name"] != "cluster-gateway" || attributes["service.instance.id"] != "pod-a" {
		t.Errorf("the spans are of %v", attributes)
	}
	spans := resource.GetScopeSpans()[0].GetSpans()
	if len(spans) != 1 || spans[0].GetName() != "Request of another replica" || hex.EncodeToString(spans[0].GetTraceId()) != trace || hex.EncodeToString(spans[0].GetParentSpanId()) != parent {
		t.Errorf("the collector got %v", spans)
	}
}
