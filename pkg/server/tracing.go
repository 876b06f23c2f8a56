// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/resource"
	genericoptions "k8s.io/apiserver/pkg/server/options"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/component-base/tracing"
	tracingapi "k8s.io/component-base/tracing/api/v1"
	"k8s.io/klog/v2"
)

// tracingFlush is how long the gateway tries to send its last spans when it stops.
const tracingFlush = 3 * time.Second

// tracingConfiguration reads --tracing-config-file. It returns nil if the flag is not set.
func (o *GenericOptions) tracingConfiguration() (*tracingapi.TracingConfiguration, error) {
	path := o.Tracing.ConfigFile
	if path == "" {
		return nil, nil
	}
	if _, err := readFile("tracing-config-file", path); err != nil {
		return nil, err
	}
	c, err := genericoptions.ReadTracingConfiguration(path)
	if err != nil {
		return nil, invalid("tracing-config-file", path, "must contain a TracingConfiguration of apiserver.config.k8s.io/v1: "+err.Error())
	}
	if errs := tracingapi.ValidateTracingConfiguration(c, utilfeature.DefaultFeatureGate, nil); len(errs) > 0 {
		return nil, invalid("tracing-config-file", path, errs.ToAggregate().Error())
	}
	return c, nil
}

// traces sends spans to a collector. A nil *traces records none.
type traces struct{ provider tracing.TracerProvider }

// newTraces returns nil if --tracing-config-file is not set. It does not wait for the collector.
// instance tells replicas apart.
func newTraces(ctx context.Context, o *GenericOptions, instance string) (*traces, error) {
	c, err := o.tracingConfiguration()
	if c == nil || err != nil {
		return nil, err
	}
	// Not k8s.io/apiserver's TracingOptions.ApplyTo: it names the service "apiserver", as in the
	// spans of the hub and of the clusters.
	provider, err := tracing.NewProvider(ctx, c, nil, []resource.Option{resource.WithAttributes(
		attribute.String("service.name", "cluster-gateway"), attribute.String("service.instance.id", instance),
	)})
	if err != nil {
		return nil, fmt.Errorf("cannot use --tracing-config-file %s: %w", o.Tracing.ConfigFile, err)
	}
	return &traces{provider}, nil
}

// logTracingErrors logs what OpenTelemetry reports. It would write it to stderr otherwise.
func logTracingErrors() {
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { klog.ErrorS(err, "Failed to send traces") }))
}

// providerOr returns the provider, or otherwise if no traces are recorded.
func (t *traces) providerOr(otherwise tracing.TracerProvider) tracing.TracerProvider {
	if t == nil {
		return otherwise
	}
	return t.provider
}

// withForwarded continues the traces of other replicas in requests that they forward. They are
// authenticated, and have decided whether a trace is recorded.
func (t *traces) withForwarded(next http.Handler) http.Handler {
	if t == nil {
		return next
	}
	const name = "Request of another replica"
	return otelhttp.NewHandler(next, name, otelhttp.WithPropagators(tracing.Propagators()), otelhttp.WithTracerProvider(t.provider),
		// It would be the pattern of the mux in front.
		otelhttp.WithSpanNameFormatter(func(string, *http.Request) string { return name }))
}

// close sends the last spans.
func (t *traces) close() {
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), tracingFlush)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil {
		klog.ErrorS(err, "Failed to send the last traces")
	}
}
