// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/oam-dev/cluster-gateway/benchmark/measure"
	"github.com/oam-dev/cluster-gateway/benchmark/report"
)

// distance measures the cost of a long distance between agent and gateway. The direct route gets
// the same distance.
func (s *session) distance() error {
	routes, err := s.bed.FarRoutes()
	if err != nil {
		return err
	}
	for _, r := range routes {
		s.siteOf[r] = s.siteOf[s.routes[0]]
	}
	defer s.bed.SetDistance(0, 0)
	s.note("Distance: a user-space proxy delays everything by half of the round-trip time in each direction. It is between agent and tunnel server or, for the direct route, between client and API server. It does not model TCP's slow start or packet loss.")
	for _, rtt := range append([]time.Duration{0}, s.plan.rtts...) {
		s.bed.SetDistance(rtt, 0)
		for _, w := range []measure.Workload{
			measure.GetWorkload(s.plan.farGet),
			measure.FlowWorkload(s.plan.farFlow, s.site),
		} {
			w.Name, w.Title = w.Name+"-far", w.Title+", over a distance"
			w.X, w.XLabel, w.Warmup = rtt.Seconds(), report.RTTLabel, 3
			series := s.measure(w, routes)
			if strings.HasPrefix(w.Name, measure.Get) && rtt > 0 {
				s.roundTrips(series, rtt)
			}
		}
	}
	for _, bandwidth := range s.plan.bandwidths {
		s.bed.SetDistance(0, bandwidth)
		w := downloadOne(s.plan.farDownload, s.site)
		w.X, w.XLabel = bandwidth, report.BandwidthLabel
		s.measure(w, routes)
	}
	return s.ctx.Err()
}

// roundTrips records how many round trips a request takes. The time that the request spends on this
// machine is included.
func (s *session) roundTrips(series []*report.Series, rtt time.Duration) {
	for _, one := range series {
		if !one.Failing() && one.Summary.N > 0 {
			s.fact(report.RoundTripsFact(one.Route, rtt.String()), one.Summary.P50/rtt.Seconds(), report.Count, "the median divided by the round-trip time")
		}
	}
}

// downloadOne downloads one object of 1 MB.
func downloadOne(rounds int, sites measure.Sites) measure.Workload {
	return measure.Workload{
		Name: "get-1mb-far", Title: "GET 1 MB, over a limited bandwidth", Unit: report.Seconds, Rounds: rounds, Warmup: 1, Timeout: time.Minute,
		Prepare: func(ctx context.Context, r *measure.Route) (*measure.Work, error) {
			namespace, err := sites(r).Fill(ctx, "single", 1, 1_000_000)
			if err != nil {
				return nil, err
			}
			path := fmt.Sprintf("/api/v1/namespaces/%s/configmaps/object-00000", namespace)
			return &measure.Work{Do: func(ctx context.Context) measure.Outcome {
				began := time.Now()
				_, _, err := r.Do(ctx, http.MethodGet, path, nil)
				return measure.Timed(began, err)
			}}, nil
		},
	}
}
