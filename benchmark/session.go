// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"k8s.io/client-go/tools/clientcmd"

	"github.com/oam-dev/cluster-gateway/benchmark/measure"
	"github.com/oam-dev/cluster-gateway/benchmark/report"
	"github.com/oam-dev/cluster-gateway/benchmark/stats"
	"github.com/oam-dev/cluster-gateway/benchmark/testbed"
	"github.com/oam-dev/cluster-gateway/benchmark/usage"
)

// session is one run of the benchmark.
type session struct {
	// ctx ends when the run is interrupted.
	ctx     context.Context
	out     io.Writer
	options *options
	plan    plan
	began   time.Time

	bed    *testbed.Bed // nil with the user's own clusters
	routes []*measure.Route
	// sites are the managed clusters by UID. siteOf is the cluster that each route leads to.
	sites  map[string]*measure.Site
	siteOf map[*measure.Route]*measure.Site

	machine  usage.Machine
	observer *usage.Observer
	report   *report.Report
}

// cleaningTimeout bounds the cleanup.
const cleaningTimeout = time.Minute

// benchmark takes the measurements and writes the reports, even after a failure.
func benchmark(ctx context.Context, o *options, out io.Writer) (err error) {
	s := &session{
		ctx: ctx, out: out, options: o, plan: newPlan(o), began: time.Now(),
		sites: map[string]*measure.Site{}, siteOf: map[*measure.Route]*measure.Site{},
		report: &report.Report{},
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.prepare(); err != nil {
		return err
	}
	failure := s.measureAll()
	if ctx.Err() != nil {
		s.report.Interrupted, failure = true, nil
	}
	s.conclude()
	return errors.Join(failure, s.write())
}

func (s *session) prepare() error {
	steps := []func() error{s.startBed, s.bedRoutes}
	if s.options.direct != "" {
		steps = []func() error{s.ownRoutes}
	}
	for _, step := range append(steps, s.furtherRoutes, s.findSites) {
		if err := step(); err != nil {
			return err
		}
	}
	for _, r := range s.routes {
		s.report.Routes = append(s.report.Routes, report.Route{Name: r.Name, Title: r.Title})
	}
	var err error
	s.machine, err = usage.Snapshot(s.pids())
	return err
}

func (s *session) measureAll() error {
	var errs []error
	s.observe()
	for _, p := range parts() {
		if s.ctx.Err() != nil {
			break
		}
		if len(s.options.only) > 0 && !slices.Contains(s.options.only, p.name) {
			continue
		}
		if p.needsBed && s.bed == nil {
			s.note("%s was skipped: it requires the testbed.", p.name)
			continue
		}
		if p.restarts {
			s.endObservation()
		}
		if err := p.run(s); err != nil && s.ctx.Err() == nil {
			// The results of the other parts are still useful.
			errs = append(errs, fmt.Errorf("%s: %w", p.name, err))
			s.note("FAILED: %s was not completed: %v", p.name, err)
			s.logf("FAILED: %s: %v", p.name, err)
		}
	}
	s.endObservation()
	return errors.Join(errs...)
}

// observe starts to record the resource usage of the processes.
func (s *session) observe() {
	if s.bed != nil {
		s.observer = usage.Observe(s.ctx, s.bed.Processes())
	}
}

// endObservation adds the recorded usage to the report, once.
func (s *session) endObservation() {
	if s.observer != nil {
		s.report.Resources = s.observer.End(context.WithoutCancel(s.ctx))
		s.observer = nil
	}
}

func (s *session) fact(name string, value float64, unit report.Unit, note string) {
	s.report.Facts = append(s.report.Facts, report.Fact{Name: name, Value: value, Unit: unit, Note: note})
	s.logf("  %s: %s", name, unit.Format(value))
}

// routesNamed returns the routes with the given names.
func (s *session) routesNamed(names ...string) []*measure.Route {
	var some []*measure.Route
	for _, r := range s.routes {
		if slices.Contains(names, r.Name) {
			some = append(some, r)
		}
	}
	return some
}

func median(figures []float64) float64 { return stats.Median(figures) }

// measure runs one workload and prints its progress.
func (s *session) measure(w measure.Workload, routes []*measure.Route) []*report.Series {
	series := s.rounds(w, routes)
	s.add(series)
	return series
}

// add adds the series of one workload to the report.
func (s *session) add(series []*report.Series) {
	if len(series) == 0 {
		return
	}
	s.report.Series = append(s.report.Series, series...)
	s.report.Finish()
	s.logf("  %s", report.Brief(series))
}

// rounds runs one workload.
func (s *session) rounds(w measure.Workload, routes []*measure.Route) []*report.Series {
	if s.ctx.Err() != nil {
		return nil
	}
	name := w.Name
	if w.XLabel != "" {
		name += " at " + report.FormatX(w.XLabel, w.X)
	}
	s.logf("%s: %d rounds by %d routes", name, w.Rounds, len(routes))
	last := time.Now()
	return measure.Rounds(s.ctx, w, routes, func(done, of int) {
		if time.Since(last) > 10*time.Second {
			last = time.Now()
			s.logf("  %d of %d", done, of)
		}
	})
}

func (s *session) logf(format string, args ...any) {
	elapsed := time.Since(s.began).Round(time.Second)
	fmt.Fprintf(s.out, "[%02d:%02d] %s\n", int(elapsed.Minutes()), int(elapsed.Seconds())%60, fmt.Sprintf(format, args...))
}

func (s *session) note(format string, args ...any) {
	s.report.Notes = append(s.report.Notes, fmt.Sprintf(format, args...))
}

func (s *session) startBed() (err error) {
	s.logf("starting the testbed")
	s.bed, err = testbed.Start(s.ctx, testbed.Options{
		Out: indented{s.out}, GatewayBinary: s.options.gatewayBinary, GatewayArgs: s.options.gatewayArgs,
	})
	return err
}

func (s *session) bedRoutes() (err error) {
	s.note("Stock agents and the konnectivity-server run with --v=1. With their default of 4, they log one or two lines for every packet. Everything else has its default value.")
	s.routes, err = s.bed.Routes()
	return err
}

// clustersPath is the path of the ClusterGateways.
const clustersPath = "/apis/cluster.core.oam.dev/v1alpha1/clustergateways/"

func (s *session) ownRoutes() error {
	if err := s.addRoute(report.Direct, "Direct", s.options.direct, ""); err != nil {
		return err
	}
	for _, door := range []struct{ name, title, file string }{
		{"hub", "hub", s.options.hub},
		{"own", "own endpoint", s.options.gateway},
	} {
		if door.file == "" {
			continue
		}
		for _, cluster := range s.options.clusters {
			if err := s.addRoute(door.name+"/"+cluster, "Gateway, "+door.title+", "+cluster, door.file, clustersPath+cluster+"/proxy"); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *session) furtherRoutes() error {
	for _, r := range s.options.routes {
		name, file, _ := strings.Cut(r, "=")
		if err := s.addRoute(name, name, file, ""); err != nil {
			return err
		}
	}
	return nil
}

func (s *session) addRoute(name, title, kubeconfig, path string) error {
	if slices.ContainsFunc(s.routes, func(r *measure.Route) bool { return r.Name == name }) {
		return fmt.Errorf("the route %s is defined twice", name)
	}
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return fmt.Errorf("route %s: %w", name, err)
	}
	config.Host = strings.TrimSuffix(config.Host, "/") + path
	r, err := measure.NewRoute(name, title, config)
	if err != nil {
		return err
	}
	s.routes = append(s.routes, r)
	return nil
}

// findSites finds out which cluster each route leads to. A route that fails is still measured, so
// that the report shows its failure.
func (s *session) findSites() error {
	for i, r := range s.routes {
		ctx, cancel := context.WithTimeout(s.ctx, 30*time.Second)
		uid, err := measure.UID(ctx, r)
		cancel()
		switch {
		case err != nil && i == 0:
			return fmt.Errorf("route %s, the baseline of all comparisons: %w", r.Name, err)
		case err != nil:
			s.logf("route %s fails: %s", r.Name, measure.Describe(err))
			s.siteOf[r] = s.siteOf[s.routes[0]]
			continue
		}
		if s.sites[uid] == nil {
			if i > 0 {
				s.note("Route %s leads to another cluster than %s, so their ratio also compares the clusters.", r.Name, s.routes[0].Name)
			}
			s.sites[uid] = measure.NewSite(r)
		}
		s.siteOf[r] = s.sites[uid]
	}
	return nil
}

func (s *session) site(r *measure.Route) *measure.Site { return s.siteOf[r] }

// pids are the process IDs of everything that was started for the run.
func (s *session) pids() []int {
	if s.bed == nil {
		return nil
	}
	var pids []int
	for _, p := range s.bed.Lab.Processes() {
		select {
		case <-p.Done():
		default:
			pids = append(pids, p.Pid())
		}
	}
	return pids
}

// conclude adds the conditions of the run to the report.
func (s *session) conclude() {
	c := &s.report.Conditions
	c.Date, c.Took, c.Command = s.began, time.Since(s.began), strings.Join(os.Args, " ")
	c.Machine, c.Memory, c.Kernel = usage.Describe()
	c.CPUs, c.Go = runtime.NumCPU(), runtime.Version()
	c.Versions = s.versions()
	c.ForeignCPU = -1
	if now, err := usage.Snapshot(s.pids()); err == nil {
		c.Busy, c.ForeignCPU = now.Since(s.machine)
	}
	if s.bed == nil {
		c.ForeignCPU = -1 // the servers may be on other machines
	}
	s.report.Finish()
}

func (s *session) close() error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), cleaningTimeout)
	defer cancel()
	if s.bed != nil {
		s.logf("stopping the testbed")
		return s.bed.Close()
	}
	var errs []error
	for _, site := range s.sites {
		errs = append(errs, site.Clean(ctx))
	}
	return errors.Join(errs...)
}

// indented indents the lines of the testbed below those of the session.
type indented struct{ w io.Writer }

func (i indented) Write(p []byte) (int, error) {
	for line := range strings.Lines(string(p)) {
		if _, err := fmt.Fprint(i.w, "        ", line); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}
