// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/oam-dev/cluster-gateway/benchmark/measure"
)

// trust measures what it costs that the cluster sees the caller, and that the hub's rules decide
// about what is asked of the cluster.
func (s *session) trust() (err error) {
	routes, stop, err := s.bed.TrustRoutes(s.ctx)
	if err != nil {
		return err
	}
	defer func() {
		if stopped := stop(); err == nil {
			err = stopped
		}
	}()
	one := measure.GetWorkload(s.plan.get)
	one.Name, one.Title = one.Name+"-trust", one.Title+", with identity and rules"
	many := measure.LoadWorkload(32, s.plan.loadRounds, s.plan.loadWindow)
	many.Name, many.Title = many.Name+"-trust", many.Title+", with identity and rules"
	for _, w := range []measure.Workload{one, many} {
		s.measure(w, routes)
	}
	return s.ctx.Err()
}
