// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync/atomic"

	"github.com/oam-dev/cluster-gateway/benchmark/measure"
	"github.com/oam-dev/cluster-gateway/benchmark/report"
	"github.com/oam-dev/cluster-gateway/benchmark/testbed"
)

// replicas measures what it costs that a replica forwards requests to another one, and what it
// costs to spread requests over two replicas.
func (s *session) replicas() (err error) {
	replicas, err := s.bed.StartReplicas(s.ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, replicas.Stop()) }()
	routes, err := replicas.Routes(s.ctx)
	if err != nil {
		return err
	}
	one := measure.GetWorkload(s.plan.get)
	one.Name, one.Title = report.GetReplicas, one.Title+", through two replicas"
	many := measure.LoadWorkload(32, s.plan.loadRounds, s.plan.loadWindow)
	many.Name, many.Title = many.Name+"-replicas", many.Title+", through two replicas"
	for _, w := range []measure.Workload{one, many} {
		s.measure(w, routes)
	}
	return s.spread(replicas)
}

// Spreading is measured with requests from many workers to many clusters.
const (
	spreadWorkers  = 64
	spreadClusters = 100
)

// spread measures the replicas' CPU time for a request, when all requests go to one of them, and
// when they go to both in turn. The agents are connected to both in either case.
func (s *session) spread(replicas *testbed.Replicas) (err error) {
	fleet := replicas.NewFleet()
	defer func() { err = errors.Join(err, fleet.Stop(context.WithoutCancel(s.ctx))) }()
	ctx, cancel := context.WithTimeout(s.ctx, fleetTimeout)
	defer cancel()
	s.logf("replicas: starting %d clusters with agents", spreadClusters)
	if err := fleet.Grow(ctx, spreadClusters); err != nil {
		return err
	}
	through, err := replicas.FleetRoutes(fleet)
	if err != nil {
		return err
	}
	for _, routes := range through {
		for _, r := range routes {
			if err := r.Await(ctx); err != nil {
				return err
			}
		}
	}
	w := measure.Workload{
		Name: report.SpreadCPU, Title: fmt.Sprintf("GET a Namespace of %d clusters from %d workers: CPU time of two replicas for a request", spreadClusters, spreadWorkers),
		Unit: report.Seconds, Rounds: s.plan.spread, Warmup: 1,
		Prepare: func(_ context.Context, r *measure.Route) (*measure.Work, error) {
			used := through[:1]
			if r.Name == report.TwoReplicas {
				used = through
			}
			var next atomic.Int64
			pick := func() *measure.Route {
				n := int(next.Add(1))
				return used[n%len(used)][n/len(used)%spreadClusters]
			}
			return &measure.Work{Do: func(ctx context.Context) measure.Outcome {
				before, err := replicas.CPUSeconds(ctx)
				if err != nil {
					return measure.Outcome{Value: math.NaN(), Attempts: 1, Failures: 1, Err: err}
				}
				o := measure.LoadOf(ctx, pick, spreadWorkers, s.plan.spreadWindow)
				after, err := replicas.CPUSeconds(ctx)
				if err != nil {
					return measure.Outcome{Value: math.NaN(), Attempts: 1, Failures: 1, Err: err}
				}
				o.Value = (after - before) / float64(o.Attempts-o.Failures)
				return o
			}}, nil
		},
	}
	s.measure(w, []*measure.Route{through[0][0].As(report.OneReplica), through[0][0].As(report.TwoReplicas)})
	return s.ctx.Err()
}
