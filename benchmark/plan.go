// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"time"

	"github.com/oam-dev/cluster-gateway/benchmark/measure"
)

// plan is how much of everything is measured.
type plan struct {
	get, flow, list100, list10000, download, upload int

	workers    []int
	loadRounds int
	loadWindow time.Duration

	fleet []int
}

func newPlan(o *options) plan {
	p := plan{
		get: 1000, flow: 100, list100: 200, list10000: 15, download: 25, upload: 40,
		workers: []int{1, 2, 4, 8, 16, 32, 64, 128, 256}, loadRounds: 6, loadWindow: 500 * time.Millisecond,
		fleet: []int{1, 10, 100, 1000},
	}
	if o.quick {
		p = plan{
			get: 150, flow: 30, list100: 40, list10000: 5, download: 8, upload: 10,
			workers: []int{1, 32, 256}, loadRounds: 5, loadWindow: 300 * time.Millisecond,
			fleet: []int{1, 10, 50},
		}
	}
	if o.fleet != nil {
		p.fleet = o.fleet
	}
	return p
}

// part is one of the things that are measured.
type part struct {
	name string
	// needsBed is set for what can only be measured on the testbed.
	needsBed bool
	run      func(*session) error
}

func parts() []part {
	return []part{
		{"requests", false, (*session).requests},
		{"load", false, (*session).load},
	}
}

func partNames() []string {
	var names []string
	for _, p := range parts() {
		names = append(names, p.name)
	}
	return names
}

// requests measures what is sent one at a time.
func (s *session) requests() error {
	for _, w := range []measure.Workload{
		measure.GetWorkload(s.plan.get),
		measure.FlowWorkload(s.plan.flow, s.site),
		measure.ListWorkload(measure.List100, 100, s.plan.list100, s.site),
		measure.ListWorkload(measure.List10000, 10_000, s.plan.list10000, s.site),
		measure.DownloadWorkload(s.plan.download, s.site),
		measure.UploadWorkload(s.plan.upload, s.site),
	} {
		s.measure(w, s.routes)
	}
	return s.ctx.Err()
}

// load measures how many requests a second go through.
func (s *session) load() error {
	for _, workers := range s.plan.workers {
		s.measure(measure.LoadWorkload(workers, s.plan.loadRounds, s.plan.loadWindow), s.routes)
	}
	return s.ctx.Err()
}
