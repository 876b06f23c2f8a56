// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"net/http"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/oam-dev/cluster-gateway/pkg/internal/untrusted"
)

// The filters of the generic API server start a span for each request if the gateway records
// traces, and decide whether it continues the trace of the caller. The spans of this file are below
// it: one for the request to the cluster, and one for each new connection.

// tracerName is the name of the instrumentation in spans.
const tracerName = "github.com/oam-dev/cluster-gateway/pkg/proxy"

// Names of spans, and the keys of their attributes. docs/observe.md describes them. A value that
// has a label in metrics is the same there.
const (
	spanRequest = "Request to the managed cluster"
	spanDial    = "Connect to the managed cluster"

	attributeCluster   = attribute.Key("cluster")
	attributeRoute     = attribute.Key("route")
	attributeVerb      = attribute.Key("verb")
	attributeResource  = attribute.Key("resource")
	attributeForwarded = attribute.Key("forwarded")
	attributeAgent     = attribute.Key("agent")
	attributeResult    = attribute.Key("result")
	attributeStage     = attribute.Key("stage")
	attributeCode      = attribute.Key("http.response.status_code")
)

// traced reports whether the gateway records traces. Without tracing, the span of a request is
// empty, or stands for the one that the caller has named in its header.
func traced(ctx context.Context) bool {
	sc := trace.SpanContextFromContext(ctx)
	return sc.IsValid() && !sc.IsRemote()
}

// startSpan starts a span below that of ctx. Call it only if the request is traced.
func startSpan(ctx context.Context, kind trace.SpanKind, name string, attributes ...attribute.KeyValue) (context.Context, trace.Span) {
	return trace.SpanFromContext(ctx).TracerProvider().Tracer(tracerName).Start(ctx, name,
		trace.WithSpanKind(kind), trace.WithAttributes(attributes...))
}

// startSpan starts the span of the request to the cluster or to another replica. It sets x.span
// only if the request is traced.
func (x *exchange) startSpan(ctx context.Context) context.Context {
	if !traced(ctx) {
		return ctx
	}
	c, info := x.lease.cluster, x.attributes.info
	ctx, x.span = startSpan(ctx, trace.SpanKindClient, spanRequest,
		attributeCluster.String(c.Name), attributeRoute.String(string(c.Route)), attributeVerb.String(x.attributes.verb))
	if info.IsResourceRequest {
		x.span.SetAttributes(attributeResource.String(untrusted.Limit(resourceText(info.APIGroup, info.Resource, info.Subresource), maxAnnotation)))
	}
	return ctx
}

// endSpan ends the span of the request.
func (x *exchange) endSpan() {
	if x.span == nil {
		return
	}
	switch x.code {
	case codeAborted:
		x.span.SetStatus(codes.Error, "the answer ended before it was complete")
	case codeClientGone:
		x.span.SetStatus(codes.Error, "the client did not wait for the answer")
	default:
		x.span.SetAttributes(attributeCode.Int(x.code))
	}
	if x.forwarding {
		x.span.SetAttributes(attributeForwarded.Bool(true))
	}
	x.span.End()
}

// failSpan reports why the request has no answer.
func (x *exchange) failSpan(message string) {
	if x.span != nil {
		x.span.SetStatus(codes.Error, untrusted.Limit(message, maxAnnotation))
	}
}

// propagateTrace makes the request part of the trace of its span. What the caller has sent is
// removed: it names another span, and it could ask the cluster to record.
func (x *exchange) propagateTrace(h http.Header) {
	if x.span == nil {
		return
	}
	propagator := propagation.TraceContext{}
	for _, name := range propagator.Fields() {
		h.Del(name)
	}
	propagator.Inject(x.ctx, propagation.HeaderCarrier(h))
}

// startSpan starts the span of a new connection, below that of the request for which it is made. It
// is nil if that one is not traced.
func (c *connector) startSpan(ctx context.Context) (context.Context, trace.Span) {
	if !traced(ctx) {
		return ctx, nil
	}
	return startSpan(ctx, trace.SpanKindInternal, spanDial, attributeCluster.String(c.cluster.Name), attributeRoute.String(string(c.cluster.Route)))
}

// endDialSpan ends the span of a new connection with its outcome.
func endDialSpan(span trace.Span, err error) {
	if span == nil {
		return
	}
	stage, result := dialOutcome(err)
	span.SetAttributes(attributeResult.String(result))
	if err != nil {
		span.SetAttributes(attributeStage.String(stage))
		span.SetStatus(codes.Error, brief(err))
	}
	span.End()
}

// traceAgent adds the agent to the span of a new connection.
func traceAgent(dialCtx context.Context, agent string) {
	if agent != "" {
		trace.SpanFromContext(dialCtx).SetAttributes(attributeAgent.String(untrusted.Text(agent)))
	}
}

// traceFailure adds an attempt that failed to the span of a new connection.
func traceFailure(dialCtx context.Context, err error) {
	if span := trace.SpanFromContext(dialCtx); span.IsRecording() {
		span.AddEvent("The attempt failed", trace.WithAttributes(attribute.String("error", brief(err))))
	}
}
