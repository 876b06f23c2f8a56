// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/oam-dev/cluster-gateway/benchmark/usage"
	"github.com/oam-dev/cluster-gateway/test/lab"
)

// EmbeddedGateway is the name of the process of the gateway with the embedded tunnel server.
const EmbeddedGateway = "gateway, embedded tunnel"

// Processes returns the processes whose resource usage is recorded. The goroutines of the API
// servers are not: the request for them would cost more than some of the measurements.
func (b *Bed) Processes() []usage.Process {
	return []usage.Process{
		{Name: EmbeddedGateway, PID: func() int { return b.Embedded.Pid() }, Goroutines: goroutines(b.metrics(b.Embedded))},
		{Name: "agent of the embedded tunnel", PID: func() int { return b.EmbeddedAgent.Pid() }, Goroutines: goroutines(func(ctx context.Context) ([]byte, error) { return b.EmbeddedAgent.Metrics(ctx) })},
		{Name: "gateway, konnectivity-server", PID: func() int { return b.External.Pid() }, Goroutines: goroutines(b.metrics(b.External))},
		{Name: "konnectivity-server", PID: b.Konnectivity.Pid, Goroutines: goroutines(b.Konnectivity.Metrics)},
		{Name: "agent of the konnectivity-server", PID: func() int { return b.ExternalAgent.Pid() }, Goroutines: goroutines(func(ctx context.Context) ([]byte, error) { return b.ExternalAgent.Metrics(ctx) })},
		{Name: "API server of the managed cluster", PID: func() int { return b.Managed.APIServer().Pid() }},
		{Name: "API server of the embedded gateway's hub", PID: func() int { return b.embeddedHub.APIServer().Pid() }},
		{Name: "API server of the other gateway's hub", PID: func() int { return b.externalHub.APIServer().Pid() }},
		{Name: "this benchmark", PID: os.Getpid},
	}
}

// GatewayProcess returns the process of a gateway.
func (b *Bed) GatewayProcess(g *lab.Gateway) usage.Process {
	return usage.Process{Name: "gateway", PID: func() int { return g.Pid() }, Goroutines: goroutines(b.metrics(g))}
}

func (b *Bed) metrics(g *lab.Gateway) func(context.Context) ([]byte, error) {
	return func(ctx context.Context) ([]byte, error) { return b.own[g].Get(ctx, "/metrics") }
}

func goroutines(metrics func(context.Context) ([]byte, error)) func(context.Context) (int, error) {
	return func(ctx context.Context) (int, error) {
		text, err := metrics(ctx)
		if err != nil {
			return 0, err
		}
		v, err := gauge(text, "go_goroutines")
		return int(v), err
	}
}

// gauge reads a metric without labels.
func gauge(text []byte, name string) (float64, error) {
	for line := range bytes.Lines(text) {
		if rest, ok := bytes.CutPrefix(line, []byte(name+" ")); ok {
			return strconv.ParseFloat(string(bytes.TrimSpace(rest)), 64)
		}
	}
	return 0, fmt.Errorf("metric %s: %w", name, errors.ErrUnsupported)
}

// collections is the number of garbage collections that InUse runs. Each returns at most half of
// the growth of a stack, for example after a TLS handshake. An idle gateway has run as many after
// six minutes, because Go runs at least one every two minutes.
const collections = 3

// InUse makes a gateway collect its garbage, by requests for heap profiles, and returns how much
// memory of heap and stacks is then in use.
func (b *Bed) InUse(ctx context.Context, g *lab.Gateway) (float64, error) {
	for range collections {
		if _, err := b.own[g].Get(ctx, "/debug/pprof/heap?gc=1"); err != nil {
			return 0, err
		}
	}
	text, err := b.metrics(g)(ctx)
	if err != nil {
		return 0, err
	}
	heap, err := gauge(text, "go_memstats_heap_inuse_bytes")
	if err != nil {
		return 0, err
	}
	stacks, err := gauge(text, "go_memstats_stack_inuse_bytes")
	return heap + stacks, err
}
