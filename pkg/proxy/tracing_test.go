// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/endpoints/filters"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/component-base/tracing"
)

const (
	callersTrace = "0af7651916cd43dd8448eb211c80319c"
	callersSpan  = "00-" + callersTrace + "-b7ad6b7169203331-01"
	privileged   = `{"Name":"admin","Groups":["system:masters"]}`
)

// tracedGateway is a gateway behind the filter of the generic API server that starts traces.
type tracedGateway struct {
	*gateway
	chain http.Handler
	spans *tracetest.SpanRecorder
	// got are the headers of the last request that the cluster got.
	got http.Header
}

// newTracedGateway returns a gateway with the cluster "a". Requests that do not continue a trace
// are recorded if sampler says so. A nil sampler stands for no tracing.
func newTracedGateway(t *testing.T, sampler sdktrace.Sampler) *tracedGateway {
	t.Helper()
	g := &tracedGateway{gateway: newGateway(t, nil), spans: tracetest.NewSpanRecorder()}
	s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) { g.got = r.Header; ok(w, r) })
	g.set(s.secret("a"))
	var provider trace.TracerProvider = tracing.NewNoopTracerProvider()
	if sampler != nil {
		sdk := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(g.spans), sdktrace.WithSampler(sdktrace.ParentBased(sampler)))
		t.Cleanup(func() { _ = sdk.Shutdown(t.Context()) })
		provider = sdk
	}
	info := &request.RequestInfoFactory{APIPrefixes: sets.NewString("api", "apis"), GrouplessAPIPrefixes: sets.NewString("api")}
	g.chain = withUserHeader(filters.WithRequestInfo(filters.WithTracing(g.handler, provider), info))
	return g
}

// ask sends a GET with headers.
func (g *tracedGateway) ask(cluster string, header ...string) *httptest.ResponseRecorder {
	req := httptest.NewRequest(http.MethodGet, basePath+cluster+"/proxy/api/v1/namespaces/x/pods", http.NoBody)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	g.chain.ServeHTTP(w, req)
	return w
}

// span returns the only ended span with a name.
func (g *tracedGateway) span(name string) sdktrace.ReadOnlySpan {
	g.t.Helper()
	var found []sdktrace.ReadOnlySpan
	for _, s := range g.spans.Ended() {
		if s.Name() == name {
			found = append(found, s)
		}
	}
	if len(found) != 1 {
		g.t.Fatalf("there are %d spans %q among %d", len(found), name, len(g.spans.Ended()))
	}
	return found[0]
}

func attributesOf(s sdktrace.ReadOnlySpan) map[string]any {
	found := map[string]any{}
	for _, a := range s.Attributes() {
		found[string(a.Key)] = a.Value.AsInterface()
	}
	return found
}

const serverSpan = "GET /apis/cluster.core.oam.dev/v1alpha1/clustergateways/{:name}/proxy"

// TestTrace checks the spans of a request, and that the cluster is asked to continue their trace.
func TestTrace(t *testing.T) {
	g := newTracedGateway(t, sdktrace.NeverSample())
	if w := g.ask("a", userHeader, privileged, "Traceparent", callersSpan); w.Code != http.StatusOK {
		t.Fatalf("got %d: %s", w.Code, w.Body)
	}
	server, request, dial := g.span(serverSpan), g.span(spanRequest), g.span(spanDial)
	if id := server.SpanContext().TraceID().String(); id != callersTrace || server.Parent().SpanID().String() != "b7ad6b7169203331" {
		t.Errorf("the request is in the trace %s, below the span %s", id, server.Parent().SpanID())
	}
	if request.Parent().SpanID() != server.SpanContext().SpanID() || dial.Parent().SpanID() != request.SpanContext().SpanID() {
		t.Errorf("the spans have the wrong parents: %v, %v", request.Parent(), dial.Parent())
	}
	diff(t, "the request", map[string]any{
		"cluster": "a", "route": "direct", "verb": "list", "resource": "pods", "http.response.status_code": int64(200),
	}, attributesOf(request))
	diff(t, "the connection", map[string]any{"cluster": "a", "route": "direct", "result": "success"}, attributesOf(dial))
	diff(t, "the header", []string{"00-" + callersTrace + "-" + request.SpanContext().SpanID().String() + "-01"}, g.got["Traceparent"])

	g.ask("a", userHeader, privileged, "Traceparent", callersSpan)
	g.span(spanDial) // the second request uses the same connection
}

// TestTraceOfAStranger checks that a caller of whom the generic API server does not accept a trace
// cannot make a cluster record one.
func TestTraceOfAStranger(t *testing.T) {
	g := newTracedGateway(t, sdktrace.NeverSample())
	g.ask("a", userHeader, "jane", "Traceparent", callersSpan, "Tracestate", "vendor=1")
	if n := len(g.spans.Ended()); n > 0 {
		t.Errorf("%d spans were recorded", n)
	}
	sent := g.got.Get("Traceparent")
	if !strings.HasPrefix(sent, "00-") || !strings.HasSuffix(sent, "-00") || strings.Contains(sent, callersTrace) || g.got["Tracestate"] != nil {
		t.Errorf("the cluster got %q and the state %q", sent, g.got["Tracestate"])
	}

	g = newTracedGateway(t, sdktrace.AlwaysSample())
	g.ask("a", userHeader, "jane", "Traceparent", callersSpan)
	server := g.span(serverSpan)
	if server.Parent().IsValid() || len(server.Links()) != 1 || server.Links()[0].SpanContext.TraceID().String() != callersTrace {
		t.Errorf("the request is below the span %v, with the links %v", server.Parent(), server.Links())
	}
	if id := g.span(spanRequest).SpanContext().TraceID(); id != server.SpanContext().TraceID() || !strings.Contains(g.got.Get("Traceparent"), id.String()) {
		t.Errorf("the trace %s goes on as %s, and to the cluster as %s", server.SpanContext().TraceID(), id, g.got.Get("Traceparent"))
	}
}

// TestNoTrace checks that without tracing the headers of the caller are passed on, as
// kube-apiserver passes them on.
func TestNoTrace(t *testing.T) {
	g := newTracedGateway(t, nil)
	g.ask("a", userHeader, privileged, "Traceparent", callersSpan, "Tracestate", "vendor=1")
	diff(t, "the header", []string{callersSpan, "vendor=1"}, []string{g.got.Get("Traceparent"), g.got.Get("Tracestate")})
	g.ask("a", userHeader, privileged)
	if g.got["Traceparent"] != nil {
		t.Errorf("the cluster got %q", g.got["Traceparent"])
	}
}

// TestTraceOfAFailure checks what the spans say of a cluster that cannot be reached.
func TestTraceOfAFailure(t *testing.T) {
	g := newTracedGateway(t, sdktrace.AlwaysSample())
	s := newAPIServer(t, ok)
	g.set(s.secret("gone"))
	s.Close()
	if w := g.ask("gone", userHeader, "jane"); w.Code != http.StatusBadGateway {
		t.Fatalf("got %d: %s", w.Code, w.Body)
	}
	request, dial := g.span(spanRequest), g.span(spanDial)
	diff(t, "the connection", map[string]any{"cluster": "gone", "route": "direct", "result": "failure", "stage": "endpoint"}, attributesOf(dial))
	if got := attributesOf(request)[string(attributeCode)]; got != int64(http.StatusBadGateway) {
		t.Errorf("the span of the request has the code %v", got)
	}
	for _, s := range []sdktrace.ReadOnlySpan{request, dial} {
		if s.Status().Code != codes.Error || !strings.Contains(s.Status().Description, "connection refused") {
			t.Errorf("the span %q has the status %+v", s.Name(), s.Status())
		}
	}
}
