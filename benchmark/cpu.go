// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/oam-dev/cluster-gateway/benchmark/measure"
	"github.com/oam-dev/cluster-gateway/benchmark/report"
	"github.com/oam-dev/cluster-gateway/benchmark/testbed"
	"github.com/oam-dev/cluster-gateway/benchmark/usage"
)

// downloadTitle is the title of the workload whose CPU time in the gateway has a target.
const downloadTitle = "19 MiB list, not compressed"

// cpu reports how much CPU time each process needs for one request, by each route. If all processes
// share a few CPUs, a route takes at least the sum of these times divided by the number of CPUs.
func (s *session) cpu() error {
	for _, what := range []struct {
		title    string
		count    int
		workload measure.Workload
	}{
		{"GET", s.plan.cpuGet, measure.GetWorkload(s.plan.cpuGet)},
		{downloadTitle, s.plan.cpuDownload, measure.DownloadWorkload(s.plan.cpuDownload, s.site)},
		{"19 MiB list with gzip", s.plan.cpuDownload, measure.TextWorkload(s.plan.cpuDownload, s.site)},
	} {
		s.logf("cpu: %d times %s by %d routes", what.count, what.title, len(s.routes))
		for _, r := range s.routes {
			if s.ctx.Err() != nil {
				return s.ctx.Err()
			}
			if err := s.cpuOf(r, what.title, what.count, what.workload); err != nil {
				return fmt.Errorf("%s by %s: %w", what.title, r.Name, err)
			}
		}
	}
	return nil
}

func (s *session) cpuOf(r *measure.Route, title string, count int, w measure.Workload) error {
	work, err := w.Prepare(s.ctx, r)
	if err != nil {
		return err
	}
	if work.Close != nil {
		defer work.Close()
	}
	if o := work.Do(s.ctx); o.Err != nil { // the first request opens the connections
		return o.Err
	}
	before, err := s.cpuSeconds()
	if err != nil {
		return err
	}
	for range count {
		if o := work.Do(s.ctx); o.Err != nil {
			return o.Err
		}
	}
	after, err := s.cpuSeconds()
	if err != nil {
		return err
	}
	s.cpuFact(r, title, count, before, after)
	return nil
}

// cpuSeconds returns how much CPU time each process has used so far.
func (s *session) cpuSeconds() (map[string]float64, error) {
	used := map[string]float64{}
	for _, p := range s.bed.Processes() {
		p.Goroutines = nil // the request for them would be counted
		of, err := usage.Of(context.WithoutCancel(s.ctx), p)
		if err != nil {
			return nil, err
		}
		used[p.Name] = of.CPUSeconds
	}
	return used, nil
}

func (s *session) cpuFact(r *measure.Route, title string, count int, before, after map[string]float64) {
	type share struct {
		process string
		seconds float64
	}
	var shares []share
	total := 0.0
	for process := range after {
		seconds := (after[process] - before[process]) / float64(count)
		total += seconds
		shares = append(shares, share{process, seconds})
	}
	slices.SortFunc(shares, func(a, b share) int {
		return cmp.Or(cmp.Compare(b.seconds, a.seconds), strings.Compare(a.process, b.process))
	})
	var parts []string
	for _, one := range shares {
		if one.seconds >= total/100 {
			parts = append(parts, one.process+" "+report.Seconds.Format(one.seconds))
		}
	}
	byGateway := []string{testbed.HubDirect, testbed.HubEmbedded, testbed.OwnDirect, testbed.OwnEmbedded}
	if title == downloadTitle && slices.Contains(byGateway, r.Name) {
		s.fact(report.DownloadCPUFact(r.Name), (after[testbed.EmbeddedGateway]-before[testbed.EmbeddedGateway])/float64(count), report.Seconds, "")
	}
	s.fact("CPU time of a "+title+", "+r.Name, total, report.Seconds, strings.Join(parts, ", "))
}
