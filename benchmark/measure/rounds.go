// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"net/url"
	"slices"
	"time"

	"github.com/oam-dev/cluster-gateway/benchmark/report"
)

// Workload is what is sent by each route.
type Workload struct {
	// Name and X identify it; XLabel says what X is.
	Name, Title string
	X           float64
	XLabel      string
	Unit        report.Unit
	Rounds      int
	// Warmup is how many rounds come before those that count.
	Warmup int
	// Timeout bounds one round of one route. Zero means 30 s.
	Timeout time.Duration
	// Prepare makes ready what a route needs, and returns the work of one round. Close, if set, undoes it.
	Prepare func(ctx context.Context, r *Route) (*Work, error)
}

// Work is the work of one round by one route.
type Work struct {
	// Do does it once.
	Do    func(ctx context.Context) Outcome
	Close func()
}

// Outcome is what one round gave.
type Outcome struct {
	// Value is in the workload's unit, and NaN when there is none.
	Value float64
	// Attempts and Failures count what the round consisted of. Err is one of the failures.
	Attempts, Failures int
	Err                error
	// Pool, if set, is all that Value is the median of.
	Pool []float64
}

// Timed is the outcome of one attempt.
func Timed(began time.Time, err error) Outcome {
	took := time.Since(began)
	if err != nil {
		return Outcome{Value: math.NaN(), Attempts: 1, Failures: 1, Err: err}
	}
	return Outcome{Value: took.Seconds(), Attempts: 1}
}

const (
	defaultTimeout = 30 * time.Second
	// patience is how many rounds may time out in a row before a route is given up: it would hold all others up.
	patience = 3
)

// Rounds runs a workload by all routes, in turn, and returns a series for each. When ctx ends it returns what there is by then.
func Rounds(ctx context.Context, w Workload, routes []*Route, progress func(done, of int)) []*report.Series {
	if w.Timeout == 0 {
		w.Timeout = defaultTimeout
	}
	lanes := make([]*lane, len(routes))
	for i, r := range routes {
		lanes[i] = newLane(ctx, w, r)
		defer lanes[i].close()
	}
	random := rand.New(rand.NewPCG(uint64(w.Rounds), 1))
	for round := -w.Warmup; round < w.Rounds && ctx.Err() == nil; round++ {
		for _, i := range random.Perm(len(lanes)) {
			if ctx.Err() != nil {
				break
			}
			lanes[i].round(ctx, round >= 0)
		}
		if progress != nil && round >= 0 {
			progress(round+1, w.Rounds)
		}
	}
	if ctx.Err() != nil && !slices.ContainsFunc(lanes, func(l *lane) bool { return len(l.series.Figures) > 0 }) {
		return nil // interrupted before there was anything: that is no failure of the routes
	}
	series := make([]*report.Series, len(lanes))
	for i, l := range lanes {
		series[i] = l.series
	}
	align(series)
	return series
}

// lane is one route in one workload.
type lane struct {
	workload Workload
	work     *Work
	series   *report.Series
	timeouts int
}

func newLane(ctx context.Context, w Workload, r *Route) *lane {
	l := &lane{workload: w, series: &report.Series{
		Workload: w.Name, Title: w.Title, Route: r.Name, X: w.X, XLabel: w.XLabel, Unit: w.Unit, Errors: map[string]int{},
	}}
	ctx, cancel := context.WithTimeout(ctx, 2*w.Timeout)
	defer cancel()
	work, err := w.Prepare(ctx, r)
	if err != nil {
		l.series.Stopped = "cannot be prepared: " + Describe(err)
		return l
	}
	l.work = work
	return l
}

func (l *lane) close() {
	if l.work != nil && l.work.Close != nil {
		l.work.Close()
	}
}

func (l *lane) round(parent context.Context, counts bool) {
	if l.series.Stopped != "" {
		if counts {
			l.series.Figures = append(l.series.Figures, math.NaN())
		}
		return
	}
	ctx, cancel := context.WithTimeout(parent, l.workload.Timeout)
	defer cancel()
	o := l.work.Do(ctx)
	if parent.Err() != nil {
		return // interrupted: it says nothing about the route
	}
	if ctx.Err() != nil && o.Failures > 0 {
		l.timeouts++
	} else {
		l.timeouts = 0
	}
	if counts {
		l.count(o)
	}
	if l.timeouts >= patience {
		l.series.Stopped = fmt.Sprintf("%d rounds in a row took longer than %s", patience, l.workload.Timeout)
	}
}

func (l *lane) count(o Outcome) {
	s := l.series
	s.Figures = append(s.Figures, o.Value)
	s.Attempts += o.Attempts
	s.Failures += o.Failures
	s.Pool = append(s.Pool, o.Pool...)
	if o.Err != nil {
		s.Errors[Describe(o.Err)] += max(1, o.Failures)
	}
}

// align cuts all series to the shortest: an interrupted round was not done by all.
func align(series []*report.Series) {
	shortest := math.MaxInt
	for _, s := range series {
		shortest = min(shortest, len(s.Figures))
	}
	for _, s := range series {
		s.Figures = s.Figures[:shortest]
	}
}

// Describe says what an error is in one line that is the same for the same fault, so that faults can be counted.
func Describe(err error) string {
	var status *StatusError
	var address *url.Error
	var operation *net.OpError
	switch {
	case errors.As(err, &status):
		return fmt.Sprintf("HTTP %d %s", status.Code, statusMessage(status.Body))
	case errors.Is(err, context.DeadlineExceeded):
		return "no answer in time"
	case errors.As(err, &operation):
		return fmt.Sprintf("%s: %v", operation.Op, operation.Err)
	case errors.As(err, &address):
		return address.Err.Error()
	default:
		return clip(err.Error())
	}
}
