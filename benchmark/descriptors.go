// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"

	"github.com/oam-dev/cluster-gateway/benchmark/measure"
	"github.com/oam-dev/cluster-gateway/benchmark/report"
	"github.com/oam-dev/cluster-gateway/benchmark/usage"
	"github.com/oam-dev/cluster-gateway/test/lab"
)

// descriptors counts the file descriptors that are open after 10,000 requests but not after 100.
func (s *session) descriptors() error {
	for _, g := range []struct {
		name    string
		gateway *lab.Gateway
		suffix  string
		fact    string
	}{
		{"embedded", s.bed.Embedded, "-embedded", report.DescriptorsFact},
		{"external", s.bed.External, "-external", report.DescriptorsFact + ", konnectivity-server"},
	} {
		if g.gateway == s.bed.External && s.options.quick {
			continue // only the embedded gateway has a target
		}
		var routes []*measure.Route
		for _, r := range s.routes {
			if strings.HasSuffix(r.Name, g.suffix) {
				routes = append(routes, r)
			}
		}
		few, err := s.descriptorsAfter(g.gateway, routes, 100)
		if err != nil {
			return err
		}
		many, err := s.descriptorsAfter(g.gateway, routes, 9_900)
		if err != nil {
			return err
		}
		s.fact(g.fact, float64(many.Descriptors-few.Descriptors), report.Count,
			fmt.Sprintf("%d descriptors and %d goroutines after 100 tunneled requests by 8 workers, %d and %d after 10,000",
				few.Descriptors, few.Goroutines, many.Descriptors, many.Goroutines))
	}
	return s.ctx.Err()
}

func (s *session) descriptorsAfter(g *lab.Gateway, routes []*measure.Route, requests int) (report.Resources, error) {
	for _, r := range routes {
		if o := measure.Requests(s.ctx, r, requests/len(routes), 8); o.Failures > 0 {
			return report.Resources{}, fmt.Errorf("%d of %d requests by %s failed: %w", o.Failures, o.Attempts, r.Name, o.Err)
		}
	}
	return usage.Of(s.ctx, s.bed.GatewayProcess(g))
}
