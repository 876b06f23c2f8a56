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

// Processes are those whose usage is of interest. The API servers do not tell their goroutines: asking would cost them more than some
// of what is measured.
func (b *Bed) Processes() []usage.Process {
	return []usage.Process{
		{Name: "gateway, embedded tunnel", PID: func() int { return b.Embedded.Pid() }, Goroutines: goroutines(b.metrics(b.Embedded))},
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

// GatewayProcess is that of a gateway.
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

// collections are how many garbage collections InUse has run. Each gives back half at most of what a stack has grown by, for a TLS handshake
// for instance. An idle gateway has had as many after six minutes: Go runs one every two minutes at least.
const collections = 3

// InUse makes a gateway collect its garbage, by asking for heap profiles, and returns how much of heap and stacks is in use then.
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
