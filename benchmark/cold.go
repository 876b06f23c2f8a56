// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"strings"
	"time"

	"github.com/oam-dev/cluster-gateway/benchmark/measure"
	"github.com/oam-dev/cluster-gateway/benchmark/report"
	"github.com/oam-dev/cluster-gateway/benchmark/testbed"
	"github.com/oam-dev/cluster-gateway/test/lab"
)

// versionPath is a path that every API server answers from memory.
const versionPath = "/version"

// retry is the pause between two attempts to reach a cluster that does not answer yet.
const retry = 2 * time.Millisecond

// cold measures the first request to a cluster: once it has just been registered, and once its
// agent has just been restarted.
func (s *session) cold() error {
	fleet := s.bed.NewFleet()
	defer func() { _ = fleet.Stop(context.WithoutCancel(s.ctx)) }() // the testbed is closed as well
	s.measure(measure.Workload{
		Name: "cold-registration", Title: "From registering a cluster (its agent is connected) to the first response",
		Unit: report.Seconds, Rounds: s.plan.cold,
		Prepare: func(_ context.Context, r *measure.Route) (*measure.Work, error) {
			serial := 0
			return &measure.Work{Do: func(ctx context.Context) measure.Outcome {
				serial++
				return s.registerAndAsk(ctx, fleet, r, serial)
			}}, nil
		},
	}, s.routesNamed(testbed.HubDirect, testbed.HubEmbedded, testbed.OwnDirect, testbed.OwnEmbedded))
	s.measure(measure.Workload{
		Name: "cold-agent", Title: "From starting a killed agent again to the first response",
		Unit: report.Seconds, Rounds: s.plan.cold,
		Prepare: func(_ context.Context, r *measure.Route) (*measure.Work, error) {
			return &measure.Work{Do: func(ctx context.Context) measure.Outcome { return s.killAndAsk(ctx, r) }}, nil
		},
	}, s.routesNamed(testbed.OwnEmbedded, testbed.OwnExternal))
	return s.ctx.Err()
}

// registerAndAsk registers the managed cluster under a new name and sends requests through the
// gateway until one succeeds.
func (s *session) registerAndAsk(ctx context.Context, fleet *testbed.Fleet, r *measure.Route, serial int) measure.Outcome {
	name, via := fmt.Sprintf("cold-%s-%d", r.Name, serial), lab.ViaOwnEndpoint
	if strings.HasPrefix(r.Name, "hub") {
		via = lab.ViaHub
	}
	if strings.HasSuffix(r.Name, "direct") {
		name = "near-" + name
	} else if err := s.addColdAgent(ctx, fleet, name); err != nil {
		return failed(err)
	}
	to, err := s.bed.RouteTo(s.bed.Embedded, name, via)
	if err != nil {
		return failed(err)
	}
	began := time.Now()
	if err := s.bed.Register(ctx, s.bed.Embedded, name); err != nil {
		return failed(err)
	}
	outcome := measure.Timed(began, ask(ctx, to))
	if !strings.HasPrefix(name, "near-") {
		if err := fleet.RemoveAgent(name); err != nil { // without its cluster, it would never be connected again
			return failed(err)
		}
	}
	if err := s.bed.Unregister(ctx, s.bed.Embedded, name); err != nil {
		return failed(err)
	}
	return outcome
}

// addColdAgent adds an agent and waits until it is connected.
func (s *session) addColdAgent(ctx context.Context, fleet *testbed.Fleet, name string) error {
	if err := fleet.AddAgent(ctx, name); err != nil {
		return err
	}
	return until(ctx, func() error {
		waiting, err := fleet.Waiting(1)
		if err == nil && waiting > 0 {
			err = fmt.Errorf("the agent of %s is not connected", name)
		}
		return err
	})
}

// killAndAsk kills the agent that a route needs, starts it again, and sends requests until one
// succeeds.
func (s *session) killAndAsk(ctx context.Context, r *measure.Route) measure.Outcome {
	kill, restart := s.bed.EmbeddedAgent.Kill, s.bed.RestartEmbeddedAgent
	if r.Name == testbed.OwnExternal {
		kill, restart = s.bed.ExternalAgent.Kill, s.bed.RestartExternalAgent
	}
	if err := kill(); err != nil {
		return failed(err)
	}
	began := time.Now()
	// restart returns once the agent is alive. The first response may arrive before that.
	started := make(chan error, 1)
	go func() { started <- restart(ctx) }()
	outcome := measure.Timed(began, ask(ctx, r))
	if err := <-started; err != nil {
		return failed(err)
	}
	return outcome
}

// ask repeats a request until it succeeds.
func ask(ctx context.Context, r *measure.Route) error {
	return until(ctx, func() error {
		_, _, err := r.Do(ctx, http.MethodGet, versionPath, nil)
		return err
	})
}

// until repeats f until it returns nil. If ctx ends first, it returns f's last error.
func until(ctx context.Context, f func() error) error {
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(retry):
		}
	}
}

func failed(err error) measure.Outcome {
	return measure.Outcome{Value: math.NaN(), Attempts: 1, Failures: 1, Err: err}
}
