// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/oam-dev/cluster-gateway/benchmark/measure"
	"github.com/oam-dev/cluster-gateway/benchmark/report"
	"github.com/oam-dev/cluster-gateway/benchmark/testbed"
	"github.com/oam-dev/cluster-gateway/benchmark/usage"
	"github.com/oam-dev/cluster-gateway/test/lab"
)

// connections is the number of connections of an agent to one gateway: one for ordinary requests,
// and one that waits for an upgrade. answered is how many of them the agent itself counts: the
// other one has not been answered yet.
const (
	connections = 2
	answered    = 1
)

// Times used by the scale test.
const (
	fleetTimeout   = 3 * time.Minute
	clusterTimeout = 50 * time.Millisecond // in addition, for each cluster
	restartRetry   = 100 * time.Millisecond
	// retryRate is the largest number of requests per second that are sent during a restart. More
	// would measure the clients, because all share the machine.
	retryRate = 10_000
)

// timeout is how long a step with so many clusters may take.
func timeout(n int) time.Duration { return fleetTimeout + time.Duration(n)*clusterTimeout }

// retryInterval is how often a client sends a request during a restart with so many clusters.
func retryInterval(n int) time.Duration {
	return max(restartRetry, time.Duration(n)*time.Second/retryRate)
}

// scale measures the cost of many clusters. For each number of clusters, it starts the gateway
// twice: once to measure idle clusters, and once while a client of each cluster sends requests, to
// measure the time until all clusters are served.
func (s *session) scale() error {
	s.note("Scale: all clusters are the same managed cluster, registered under different names with one credential. Their agents use the stock agent's library with its default settings, and run in processes of the benchmark, at most 2,500 in each. Each agent has its own certificate and two connections to the gateway. It opens its own connection to the API server when the cluster is first used. The gateway's figures are those of a process that serves nothing else.")
	fleet := s.bed.NewFleet()
	defer func() { _ = fleet.Stop(context.WithoutCancel(s.ctx)) }() // the testbed is closed as well
	for _, n := range s.plan.fleet {
		if s.ctx.Err() != nil {
			return s.ctx.Err()
		}
		if skipped := tooLarge(n, testbed.OpenFilesLimit()); skipped != "" {
			s.logf("scale: %s", skipped)
			s.note("Scale: %s", skipped)
			continue
		}
		s.logf("scale: %d clusters", n)
		if err := s.scaleAt(fleet, n); err != nil {
			return fmt.Errorf("%d clusters: %w", n, err)
		}
	}
	s.memoryPerCluster()
	return nil
}

// enoughClusters is the smallest number of clusters whose memory is larger than what the garbage
// collector leaves behind.
const enoughClusters = 100

// memoryPerCluster records the steeper of two slopes. With few clusters, the resident memory
// consists mostly of what the gateway used at its start. With many, it is more complete than Go's
// own count.
func (s *session) memoryPerCluster() {
	s.report.Finish()
	steepest := 0.0
	for _, g := range s.report.Growth {
		if (g.Cost == memoryCost || g.Cost == heapCost) && g.Fit != nil && g.Counts[len(g.Counts)-1] >= enoughClusters {
			steepest = max(steepest, g.Fit.Each)
		}
	}
	if steepest > 0 {
		s.fact(report.MemoryPerClusterFact, steepest, report.Bytes,
			"the steeper of the slopes of resident memory and of heap and stacks in use over the numbers of clusters, after a garbage collection")
	}
}

// Costs that may grow with the number of clusters.
const (
	memoryCost      = "gateway's resident memory, clusters idle"
	heapCost        = "gateway's heap and stacks in use, clusters idle"
	usedMemoryCost  = "gateway's resident memory, after requests to each"
	goroutineCost   = "gateway's goroutines, clusters idle"
	descriptorCost  = "gateway's descriptors, clusters idle"
	cpuCost         = "gateway's CPU, clusters idle"
	restartCost     = "gateway restart until all are served"
	reconnectCost   = "gateway restart until all agents are connected"
	attemptsCost    = "agents' attempts to connect in the busiest second of the restart"
	listCost        = "LIST of all clusters"
	watchCost       = "WATCH until all clusters have been received"
	listLengthRound = 5
)

func (s *session) scaleAt(fleet *testbed.Fleet, n int) error {
	ctx, cancel := context.WithTimeout(s.ctx, 3*timeout(n))
	defer cancel()
	if err := fleet.Grow(ctx, n); err != nil {
		return err
	}
	if err := s.connected(ctx, fleet, n); err != nil { // so that the gateway is not stopped in the rush
		return err
	}
	s.logf("  all agents are connected")
	if err := s.idleFleet(ctx, fleet, n); err != nil {
		return err
	}
	if err := s.listFleet(ctx, n); err != nil {
		return err
	}
	if err := s.restartFleet(ctx, fleet, n); err != nil {
		return err
	}
	return s.useFleet(ctx, fleet, n)
}

// idleFleet measures a gateway with clusters that are not used.
func (s *session) idleFleet(ctx context.Context, fleet *testbed.Fleet, n int) error {
	if err := s.restartGateway(ctx); err != nil {
		return err
	}
	if err := s.connected(ctx, fleet, n); err != nil {
		return err
	}
	if err := sleep(ctx, s.plan.settling); err != nil {
		return err
	}
	heap, err := s.bed.InUse(ctx, s.bed.Embedded)
	if err != nil {
		return err
	}
	process := s.bed.GatewayProcess(s.bed.Embedded)
	before, err := usage.Of(ctx, process)
	if err != nil {
		return err
	}
	began := time.Now()
	if err := sleep(ctx, s.plan.idle); err != nil {
		return err
	}
	after, err := usage.Of(ctx, usage.Process{Name: process.Name, PID: process.PID}) // the request for metrics would be counted
	if err != nil {
		return err
	}
	cores := (after.CPUSeconds - before.CPUSeconds) / time.Since(began).Seconds()
	if n >= report.LargeFleet {
		s.fact(report.FleetMemoryFact(n), float64(before.RSS), report.Bytes, fmt.Sprintf(
			"clusters idle; %d goroutines, %d descriptors, %s", before.Goroutines, before.Descriptors, report.Cores.Format(cores)))
	}
	s.grow(memoryCost, report.Bytes, n, float64(before.RSS))
	s.grow(heapCost, report.Bytes, n, heap)
	s.grow(goroutineCost, report.Count, n, float64(before.Goroutines))
	s.grow(descriptorCost, report.Count, n, float64(before.Descriptors))
	s.grow(cpuCost, report.Cores, n, cores)
	s.logf("  idle: %s, %d goroutines, %d descriptors, %s", report.Bytes.Format(float64(before.RSS)), before.Goroutines, before.Descriptors, report.Cores.Format(cores))
	return nil
}

// connected waits until all agents are connected.
func (s *session) connected(ctx context.Context, fleet *testbed.Fleet, n int) error {
	ctx, cancel := context.WithTimeout(ctx, timeout(n))
	defer cancel()
	return until(ctx, func() error {
		waiting, err := fleet.Waiting(answered)
		if err == nil && waiting > 0 {
			err = fmt.Errorf("%d of %d agents are not connected", waiting, n)
		}
		return err
	})
}

// listFleet lists and watches all ClusterGateways through the hub.
func (s *session) listFleet(ctx context.Context, n int) error {
	r, err := s.bed.OwnAPI(lab.ViaHub)
	if err != nil {
		return err
	}
	path := clustersPath[:len(clustersPath)-1]
	var list, watch []float64
	for range listLengthRound {
		began := time.Now()
		if _, _, err := r.Do(ctx, http.MethodGet, path, nil); err != nil {
			return err
		}
		list = append(list, time.Since(began).Seconds())
		began = time.Now()
		if err := r.WatchEvents(ctx, path+"?watch=true", n); err != nil {
			if ctx.Err() != nil {
				return err
			}
			// A client starts another one then. The other measurements do not depend on it.
			s.note("Scale: a WATCH of %d clusters ended early: %v", n, err)
			continue
		}
		watch = append(watch, time.Since(began).Seconds())
	}
	s.grow(listCost, report.Seconds, n, median(list))
	if len(watch) > 0 {
		s.grow(watchCost, report.Seconds, n, median(watch))
	}
	return nil
}

// restartFleet restarts the gateway while a client of each cluster sends requests until one
// succeeds.
func (s *session) restartFleet(ctx context.Context, fleet *testbed.Fleet, n int) error {
	routes, err := fleet.Routes(lab.ViaOwnEndpoint)
	if err != nil {
		return err
	}
	if _, err := fleet.Dials(); err != nil {
		return err
	}
	if err := s.bed.Embedded.Stop(); err != nil {
		return err
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, timeout(n))
	defer cancel()
	var group errgroup.Group
	group.Go(func() error { return s.bed.Embedded.Start(ctx) })
	var connectedAfter time.Duration
	group.Go(func() error {
		err := s.connected(ctx, fleet, n)
		connectedAfter = time.Since(began)
		return err
	})
	var mu sync.Mutex
	served := make([]float64, 0, n)
	for _, r := range routes {
		group.Go(func() error {
			if err := getUntilServed(ctx, r, retryInterval(n)); err != nil {
				return fmt.Errorf("%s was not served: %w", r.Name, err)
			}
			mu.Lock()
			defer mu.Unlock()
			served = append(served, time.Since(began).Seconds())
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	last := 0.0
	for _, at := range served {
		last = max(last, at)
	}
	dials, err := fleet.Dials()
	if err != nil {
		return err
	}
	busiest, attempts := busiestSecond(dials)
	s.grow(restartCost, report.Seconds, n, last)
	s.grow(reconnectCost, report.Seconds, n, connectedAfter.Seconds())
	s.grow(attemptsCost, report.Count, n, float64(busiest))
	s.fact(report.RestartFact(n), last, report.Seconds, fmt.Sprintf(
		"half of them after %.1f s; %d attempts to connect by %d agents for %d connections, at most %d in one second; the time starts when the old gateway has stopped, and a client of each cluster sends a request every %s",
		median(served), attempts, n, connections*n, busiest, retryInterval(n)))
	s.logf("  restart: all served after %.1f s, half after %.1f s, at most %d of %d attempts to connect in one second", last, median(served), busiest, attempts)
	return nil
}

// getUntilServed sends requests until one succeeds. The pauses are not part of the measurement.
func getUntilServed(ctx context.Context, r *measure.Route, retry time.Duration) error {
	for {
		attempt, cancel := context.WithTimeout(ctx, 10*time.Second)
		_, _, err := r.Do(attempt, http.MethodGet, versionPath, nil)
		cancel()
		if err == nil {
			return nil
		}
		if sleep(ctx, retry) != nil {
			return err
		}
	}
}

// useFleet sends requests to all clusters, first one at a time and then in parallel.
func (s *session) useFleet(ctx context.Context, fleet *testbed.Fleet, n int) error {
	all, err := fleet.Routes(lab.ViaOwnEndpoint)
	if err != nil {
		return err
	}
	next := 0
	s.measure(measure.Workload{
		Name: "fleet-get", Title: "GET a Namespace, of each cluster in turn", X: float64(n), XLabel: "clusters",
		Unit: report.Seconds, Rounds: s.plan.fleetGet, Warmup: 5,
		Prepare: func(_ context.Context, r *measure.Route) (*measure.Work, error) {
			return &measure.Work{Do: func(ctx context.Context) measure.Outcome {
				to := r
				if r.Name != report.Direct {
					to = all[next%n]
					next++
				}
				began := time.Now()
				_, _, err := to.Do(ctx, http.MethodGet, "/api/v1/namespaces/default", nil)
				return measure.Timed(began, err)
			}}, nil
		},
	}, s.routesNamed(report.Direct, testbed.OwnEmbedded))
	if _, err := s.bed.InUse(ctx, s.bed.Embedded); err != nil {
		return err
	}
	used, err := usage.Of(ctx, s.bed.GatewayProcess(s.bed.Embedded))
	if err != nil {
		return err
	}
	s.grow(usedMemoryCost, report.Bytes, n, float64(used.RSS))
	return nil
}

func (s *session) restartGateway(ctx context.Context) error {
	began := time.Now()
	if err := s.bed.Embedded.Stop(); err != nil {
		return err
	}
	s.logf("  stopped after %.1f s", time.Since(began).Seconds())
	return s.bed.Embedded.Start(ctx)
}

// grow records a cost for a number of clusters.
func (s *session) grow(cost string, unit report.Unit, n int, value float64) {
	for i := range s.report.Growth {
		if g := &s.report.Growth[i]; g.Cost == cost {
			g.Counts, g.Values = append(g.Counts, float64(n)), append(g.Values, value)
			return
		}
	}
	s.report.Growth = append(s.report.Growth, report.Growth{
		Cost: cost, Unit: unit, Counts: []float64{float64(n)}, Values: report.Figures{value},
		Minor: cost == heapCost || cost == usedMemoryCost || cost == reconnectCost || cost == attemptsCost,
	})
}

// busiestSecond returns the largest number of times within one second, and the total.
func busiestSecond(times []time.Time) (most, all int) {
	first := 0
	for i := range times { // in order
		for times[i].Sub(times[first]) > time.Second {
			first++
		}
		most = max(most, i-first+1)
	}
	return most, len(times)
}

// tooLarge returns why a gateway cannot have so many clusters, or nothing.
func tooLarge(n, files int) string {
	largest := testbed.LargestFleet(files)
	if n <= largest {
		return ""
	}
	return fmt.Sprintf("%d clusters were skipped: a process can have only %d open files (ulimit -Hn), and the gateway needs two for each cluster. The largest fleet that fits is --fleet %d.", n, files, largest)
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
