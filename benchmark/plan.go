// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"time"

	"github.com/oam-dev/cluster-gateway/benchmark/measure"
	"github.com/oam-dev/cluster-gateway/benchmark/report"
	"github.com/oam-dev/cluster-gateway/benchmark/testbed"
)

// plan says how many measurements are taken.
type plan struct {
	get, flow, list100, list10000, download, upload int

	workers    []int
	loadRounds int
	loadWindow time.Duration

	// watchers maps numbers of watchers to the number of rounds for each.
	watchers [][2]int

	execRun, execEcho, forward int

	rtts                         []time.Duration
	bandwidths                   []float64 // bytes per second
	farGet, farFlow, farDownload int

	cpuGet, cpuDownload int

	cold int

	filling time.Duration // the wait until buffers for slow readers are full

	spread       int
	spreadWindow time.Duration

	wrk                     int
	wrkWindow, steadyWindow time.Duration // wrk accepts whole seconds only
	wrkRoutes               []string      // nil means all

	fleet    []int
	fleetGet int
	idle     time.Duration
	settling time.Duration // the wait before an idle fleet's gateway is measured
}

func newPlan(o *options) plan {
	p := plan{
		get: 1000, flow: 100, list100: 200, list10000: 12, download: 15, upload: 30,
		workers: []int{1, 2, 4, 8, 16, 32, 64, 128, 256}, loadRounds: 6, loadWindow: 350 * time.Millisecond,
		watchers: [][2]int{{1, 200}, {1000, 20}},
		execRun:  60, execEcho: 500, forward: 8,
		rtts: []time.Duration{10 * time.Millisecond, 50 * time.Millisecond, 200 * time.Millisecond}, bandwidths: []float64{100e6 / 8, 10e6 / 8},
		farGet: 40, farFlow: 8, farDownload: 4,
		cpuGet: 1000, cpuDownload: 10,
		cold: 8, filling: 10 * time.Second, spread: 12, spreadWindow: 2 * time.Second, wrk: 8, wrkWindow: time.Second, steadyWindow: time.Second,
		fleet: []int{1, 10, 100, 1000}, fleetGet: 500, idle: 10 * time.Second, settling: 3 * time.Second,
	}
	if o.quick {
		p = plan{
			get: 150, flow: 30, list100: 40, download: 5, upload: 6,
			workers: []int{1, 32}, loadRounds: 5, loadWindow: 250 * time.Millisecond,
			watchers: [][2]int{{1, 40}, {100, 5}},
			execRun:  8, execEcho: 60, forward: 2,
			rtts: []time.Duration{50 * time.Millisecond}, bandwidths: []float64{100e6 / 8},
			farGet: 12, farFlow: 3, farDownload: 3,
			cpuGet: 200, cpuDownload: 2,
			cold: 3, filling: 2 * time.Second, spread: 4, spreadWindow: time.Second, wrk: 5, wrkWindow: time.Second, steadyWindow: 300 * time.Millisecond, wrkRoutes: []string{report.Direct, testbed.HubEmbedded, testbed.OwnEmbedded},
			fleet: []int{1, 10, 50}, fleetGet: 60, idle: time.Second, settling: time.Second,
		}
	}
	if o.fleet != nil {
		p.fleet = o.fleet
	}
	return p
}

// part is one part of the benchmark.
type part struct {
	name string
	// needsBed means that the part runs on the testbed only.
	needsBed bool
	// restarts means that the part restarts processes. Their resource usage is not observed from then
	// on.
	restarts bool
	run      func(*session) error
}

func parts() []part {
	return []part{
		{name: "requests", run: (*session).requests},
		{name: "load", run: (*session).load},
		{name: "watch", run: (*session).watch},
		{name: "crosscheck", needsBed: true, run: (*session).crosscheck},
		{name: "cpu", needsBed: true, run: (*session).cpu},
		{name: "trust", needsBed: true, run: (*session).trust},
		{name: "replicas", needsBed: true, run: (*session).replicas},
		{name: "streams", run: (*session).streams},
		{name: "slow", needsBed: true, run: (*session).slow},
		{name: "distance", needsBed: true, run: (*session).distance},
		{name: "descriptors", needsBed: true, run: (*session).descriptors},
		{name: "cold", needsBed: true, restarts: true, run: (*session).cold},
		{name: "scale", needsBed: true, restarts: true, run: (*session).scale},
	}
}

func partNames() []string {
	var names []string
	for _, p := range parts() {
		names = append(names, p.name)
	}
	return names
}

// requests measures requests that are sent one at a time.
func (s *session) requests() error {
	for _, w := range []measure.Workload{
		measure.GetWorkload(s.plan.get),
		measure.FlowWorkload(s.plan.flow, s.site),
		measure.ListWorkload(measure.List100, 100, s.plan.list100, s.site),
		measure.ListWorkload(measure.List10000, 10_000, s.plan.list10000, s.site),
		measure.TextWorkload(s.plan.download, s.site),
		measure.DownloadWorkload(s.plan.download, s.site),
		measure.UploadWorkload(s.plan.upload, s.site),
	} {
		if w.Rounds > 0 { // creating 10,000 objects already takes a while
			s.measure(w, s.routes)
		}
	}
	return s.ctx.Err()
}

// load measures the number of requests per second.
func (s *session) load() error {
	for _, workers := range s.plan.workers {
		s.measure(measure.LoadWorkload(workers, s.plan.loadRounds, s.plan.loadWindow), s.routes)
	}
	return s.ctx.Err()
}

// watch measures the latency of watch events.
func (s *session) watch() error {
	for _, w := range s.plan.watchers {
		s.measure(measure.WatchWorkload(w[0], w[1], s.site), s.routes)
	}
	return s.ctx.Err()
}

// streams measures requests that need a connection of their own.
func (s *session) streams() error {
	pod, err := s.pod()
	if err != nil {
		return err
	}
	if pod == (measure.Pod{}) {
		s.note("exec and port-forward were not measured: no --pod was given.")
		return nil
	}
	s.measure(measure.ExecRunWorkload(s.plan.execRun, pod), s.routes)
	s.measure(measure.ExecEchoWorkload(s.plan.execEcho, pod), s.routes)
	s.measure(measure.ForwardWorkload(s.plan.forward, pod), s.routes)
	return s.ctx.Err()
}

func (s *session) pod() (measure.Pod, error) {
	if s.bed == nil {
		namespace, name, _ := strings.Cut(s.options.pod, "/")
		return measure.Pod{Namespace: namespace, Name: name}, nil
	}
	pod, err := s.bed.Pod(s.ctx)
	if err != nil {
		return measure.Pod{}, err
	}
	return measure.Pod{Namespace: pod.Namespace, Name: pod.Name}, nil
}
