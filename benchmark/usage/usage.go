// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package usage reads which resources processes use, and how much of the machine others use. It
// reads Linux' /proc.
package usage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/oam-dev/cluster-gateway/benchmark/report"
)

// ticks is the unit of CPU time in /proc: USER_HZ, which is 100 on every Linux.
const ticks = 100

// Process is a process whose resource usage is recorded.
type Process struct {
	Name string
	// PID is called each time, because a process may be restarted.
	PID func() int
	// Goroutines asks the process. It is nil if the process does not report them.
	Goroutines func(context.Context) (int, error)
}

// Of returns what a process uses now. CPU counts from the start of the process, and PeakRSS is its
// maximum so far.
func Of(ctx context.Context, p Process) (report.Resources, error) {
	r := report.Resources{Process: p.Name, Goroutines: -1}
	dir := filepath.Join("/proc", strconv.Itoa(p.PID()))
	var err error
	if r.CPUSeconds, err = cpuSeconds(dir, false); err != nil {
		return r, err
	}
	if r.RSS, err = status(dir, "VmRSS"); err != nil {
		return r, err
	}
	if r.PeakRSS, err = status(dir, "VmHWM"); err != nil {
		return r, err
	}
	descriptors, err := os.ReadDir(filepath.Join(dir, "fd"))
	if err != nil {
		return r, err
	}
	r.Descriptors = len(descriptors)
	if p.Goroutines != nil {
		if r.Goroutines, err = p.Goroutines(ctx); err != nil {
			return r, fmt.Errorf("goroutines of %s: %w", p.Name, err)
		}
	}
	return r, nil
}

// cpuSeconds returns the CPU time of a process, with that of its finished children if requested.
func cpuSeconds(dir string, children bool) (float64, error) {
	data, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return 0, err
	}
	// The second field is the name of the program in parentheses. It may contain any character.
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	last := 13
	if children {
		last = 15
	}
	if len(fields) < last {
		return 0, errors.New("/proc/PID/stat is too short")
	}
	sum := 0.0
	for _, field := range fields[11:last] { // utime, stime, cutime, cstime
		v, err := strconv.ParseFloat(field, 64)
		if err != nil {
			return 0, err
		}
		sum += v
	}
	return sum / ticks, nil
}

func status(dir, key string) (uint64, error) {
	data, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(data) {
		if rest, ok := bytes.CutPrefix(line, []byte(key+":")); ok {
			kib, err := strconv.ParseUint(strings.Fields(string(rest))[0], 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("no %s in /proc/PID/status", key)
}

// Observer samples processes while something runs.
type Observer struct {
	processes []Process
	before    []report.Resources
	stop      context.CancelFunc
	group     sync.WaitGroup
	mu        sync.Mutex
	highest   []report.Resources
}

// interval is the time between samples. It is long, so that sampling does not affect the
// measurement.
const interval = 2 * time.Second

// Observe starts to sample. Processes that cannot be read are left out.
func Observe(ctx context.Context, processes []Process) *Observer {
	o := &Observer{}
	for _, p := range processes {
		r, err := Of(ctx, p)
		if err != nil {
			continue
		}
		r.Phase = "before"
		o.processes, o.before, o.highest = append(o.processes, p), append(o.before, r), append(o.highest, r)
	}
	ctx, o.stop = context.WithCancel(context.WithoutCancel(ctx))
	o.group.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(interval):
				o.sample(ctx)
			}
		}
	})
	return o
}

func (o *Observer) sample(ctx context.Context) {
	for i, p := range o.processes {
		r, err := Of(ctx, p)
		if err != nil {
			continue // it may be restarting
		}
		o.mu.Lock()
		h := &o.highest[i]
		h.RSS, h.PeakRSS = max(h.RSS, r.RSS), max(h.PeakRSS, r.PeakRSS)
		h.Descriptors, h.Goroutines = max(h.Descriptors, r.Descriptors), max(h.Goroutines, r.Goroutines)
		h.CPUSeconds = r.CPUSeconds - o.before[i].CPUSeconds
		o.mu.Unlock()
	}
}

// End stops sampling and returns three lines for each process.
func (o *Observer) End(ctx context.Context) []report.Resources {
	o.sample(ctx)
	o.stop()
	o.group.Wait()
	var all []report.Resources
	for i, p := range o.processes {
		during := o.highest[i]
		during.Phase = "during"
		all = append(all, o.before[i], during)
		if after, err := Of(ctx, p); err == nil {
			after.Phase = "after"
			all = append(all, after)
		}
	}
	return all
}
