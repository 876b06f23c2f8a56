// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/oam-dev/cluster-gateway/benchmark/measure"
	"github.com/oam-dev/cluster-gateway/benchmark/report"
	"github.com/oam-dev/cluster-gateway/benchmark/testbed"
)

const (
	slowReaders = 4       // by each route
	slowRate    = 1 << 20 // bytes per second that each reads
	// streamPause is the time between their starts. An agent opens one stream per second, and an exec
	// that has none to itself has no flow control.
	streamPause = 1500 * time.Millisecond
)

// slow measures GETs while clients read the output of execs slowly, and the memory that the gateway
// holds for each of them.
func (s *session) slow() (err error) {
	pod, err := s.pod()
	if err != nil {
		return err
	}
	before, err := s.bed.InUse(s.ctx, s.bed.Embedded)
	if err != nil {
		return err
	}
	routes := s.routesNamed(testbed.HubDirect, testbed.HubEmbedded, testbed.OwnDirect, testbed.OwnEmbedded)
	s.logf("slow: starting %d slow readers by each of %d routes", slowReaders, len(routes))
	began := time.Now()
	var all []*measure.SlowReader
	defer func() {
		var read int64
		for _, r := range all {
			n, stopped := r.Stop()
			read, err = read+n, errors.Join(err, stopped)
		}
		s.logf("  the slow readers together have read %s/s", report.Bytes.Format(float64(read)/time.Since(began).Seconds()))
	}()
	for _, r := range routes {
		for range slowReaders {
			reader, err := measure.StartSlowReader(s.ctx, r, pod, slowRate)
			if err != nil {
				return err
			}
			all = append(all, reader)
			if err := sleep(s.ctx, streamPause); err != nil {
				return err
			}
		}
	}
	if err := sleep(s.ctx, s.plan.filling); err != nil {
		return err
	}
	during, err := s.bed.InUse(s.ctx, s.bed.Embedded)
	if err != nil {
		return err
	}
	s.fact("gateway's memory for a slow reader", (during-before)/float64(len(all)), report.Bytes,
		"heap and stacks in use after a garbage collection; readers of direct and of tunneled clusters")
	w := measure.GetWorkload(s.plan.get / 2)
	w.Name, w.Title = w.Name+"-slow-readers", w.Title+fmt.Sprintf(", beside %d slow readers by each route", slowReaders)
	s.measure(w, append(s.routesNamed(report.Direct), routes...))
	return s.ctx.Err()
}
