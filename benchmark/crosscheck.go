// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/oam-dev/cluster-gateway/benchmark/measure"
	"github.com/oam-dev/cluster-gateway/benchmark/report"
)

// crosscheck measures the same GET with wrk, which shares no code with this benchmark. The ratios
// must agree.
func (s *session) crosscheck() error {
	path, _ := exec.LookPath("wrk") // empty if there is none
	if path == "" {
		s.note("The cross-check with wrk was skipped: wrk is not installed.")
		return nil
	}
	tokens := map[string]string{}
	for _, r := range s.routes {
		token, err := s.bed.Token(s.ctx, r.Name)
		if err != nil {
			return err
		}
		if token != "" { // an additional route has its own credential, which wrk may not support
			tokens[r.Name] = token
		}
	}
	var routes []*measure.Route
	for _, r := range s.routes {
		if tokens[r.Name] != "" && (s.plan.wrkRoutes == nil || slices.Contains(s.plan.wrkRoutes, r.Name)) {
			routes = append(routes, r)
		}
	}
	s.note("Cross-check: wrk uses HTTP/1.1, one connection and a token; the benchmark uses HTTP/2 and a client certificate. The two take turns. Each figure is the median over %s of wrk, or over %s of the benchmark. Both send the next GET when they have the response to the last one.", s.plan.wrkWindow, s.plan.steadyWindow)
	// Both are measured as one workload that contains each route twice.
	const suffix = " with wrk"
	both := routes
	for _, r := range routes {
		both = append(both, r.As(r.Name+suffix))
	}
	w := measure.SteadyWorkload(s.plan.wrk, s.plan.steadyWindow)
	steady := w.Prepare
	w.Prepare = func(ctx context.Context, r *measure.Route) (*measure.Work, error) {
		name, byWrk := strings.CutSuffix(r.Name, suffix)
		if !byWrk {
			return steady(ctx, r)
		}
		return &measure.Work{Do: func(ctx context.Context) measure.Outcome {
			return wrk(ctx, path, r.Config.Host+"/api/v1/namespaces/default", tokens[name], s.plan.wrkWindow)
		}}, nil
	}
	var own, other []*report.Series
	for _, one := range s.rounds(w, both) {
		name, byWrk := strings.CutSuffix(one.Route, suffix)
		if !byWrk {
			own = append(own, one)
			continue
		}
		one.Workload, one.Title, one.Route = "get-wrk", "GET a Namespace repeatedly, with wrk", name
		other = append(other, one)
	}
	s.add(own)
	s.add(other)
	return s.ctx.Err()
}

var (
	wrkMedian   = regexp.MustCompile(`(?m)^\s+50%\s+(\S+)$`)
	wrkRequests = regexp.MustCompile(`(\d+) requests in`)
	wrkFailures = regexp.MustCompile(`Non-2xx or 3xx responses: (\d+)|Socket errors: (.*)`)
)

// wrk runs wrk with one connection for the given time, and returns the median latency.
func wrk(ctx context.Context, path, url, token string, window time.Duration) measure.Outcome {
	out, err := exec.CommandContext(ctx, path, "--threads=1", "--connections=1", "--latency", "--duration="+fmt.Sprintf("%.0fs", window.Seconds()),
		"--header=Authorization: Bearer "+token, url).CombinedOutput()
	if err != nil {
		return failed(fmt.Errorf("wrk: %w: %s", err, out))
	}
	text := string(out)
	if m := wrkFailures.FindString(text); m != "" {
		return failed(fmt.Errorf("wrk: %s", m))
	}
	median, requests := wrkMedian.FindStringSubmatch(text), wrkRequests.FindStringSubmatch(text)
	if median == nil || requests == nil || requests[1] == "0" {
		return failed(fmt.Errorf("wrk printed no latency: %s", text))
	}
	took, err := time.ParseDuration(strings.Replace(median[1], "us", "µs", 1))
	if err != nil {
		return failed(fmt.Errorf("wrk: %w", err))
	}
	return measure.Outcome{Value: took.Seconds(), Attempts: 1}
}
