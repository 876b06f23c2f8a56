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

// Workload describes what is sent by each route.
type Workload struct {
	// Name and X identify it. XLabel names the parameter X.
	Name, Title string
	X           float64
	XLabel      string
	Unit        report.Unit
	Rounds      int
	// Warmup is the number of rounds before those that count.
	Warmup int
	// Timeout bounds one round of one route. Zero means 30 s.
	Timeout time.Duration
	// Prepare sets up what a route needs, and returns the work of one round. Close, if set, removes
	// it.
	Prepare func(ctx context.Context, r *Route) (*Work, error)
}

// Work is the work of one round by one route.
type Work struct {
	// Do does it once.
	Do    func(ctx context.Context) Outcome
	Close func()
}

// Outcome is the result of one round.
type Outcome struct {
	// Value is in the workload's unit. It is NaN if there is no result.
	Value float64
	// Attempts and Failures count the requests of the round. Err is one of the failures.
	Attempts, Failures int
	Err                error
	// Pool, if set, contains all values that Value is the median of.
	Pool []float64
}

// Timed returns the outcome of one attempt.
func Timed(began time.Time, err error) Outcome {
	took := time.Since(began)
	if err != nil {
		return Outcome{Value: math.NaN(), Attempts: 1, Failures: 1, Err: err}
	}
	return Outcome{Value: took.Seconds(), Attempts: 1}
}

const (
	defaultTimeout = 30 * time.Second
	// maxTimeouts is how many rounds in a row may time out before the route is given up. It would
	// delay all other routes.
	maxTimeouts = 3
)

// Rounds runs a workload by all routes in turn, and returns a series for each. When ctx ends, it
// returns the results so far.
func Rounds(ctx context.Context, w Workload, routes []*Route, progress func(done, of int)) []*report.Series {
	if w.Timeout == 0 {
		w.Timeout = defaultTimeout
	}
	runs := make([]*routeRun, len(routes))
	for i, r := range routes {
		runs[i] = newRouteRun(ctx, w, r)
		defer runs[i].close()
	}
	random := rand.New(rand.NewPCG(uint64(w.Rounds), 1))
	for round := -w.Warmup; round < w.Rounds && ctx.Err() == nil; round++ {
		for _, i := range random.Perm(len(runs)) {
			if ctx.Err() != nil {
				break
			}
			runs[i].round(ctx, round >= 0)
		}
		if progress != nil && round >= 0 {
			progress(round+1, w.Rounds)
		}
	}
	if ctx.Err() != nil && !slices.ContainsFunc(runs, func(l *routeRun) bool { return len(l.series.Figures) > 0 }) {
		return nil // interrupted before the first result, so the route has not failed
	}
	series := make([]*report.Series, len(runs))
	for i, l := range runs {
		series[i] = l.series
	}
	align(series)
	return series
}

// routeRun is one route in one workload.
type routeRun struct {
	workload Workload
	work     *Work
	series   *report.Series
	timeouts int
}

func newRouteRun(ctx context.Context, w Workload, r *Route) *routeRun {
	l := &routeRun{workload: w, series: &report.Series{
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

func (l *routeRun) close() {
	if l.work != nil && l.work.Close != nil {
		l.work.Close()
	}
}

func (l *routeRun) round(parent context.Context, counts bool) {
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
		return // interrupted: this is not a failure of the route
	}
	if ctx.Err() != nil && o.Failures > 0 {
		l.timeouts++
	} else {
		l.timeouts = 0
	}
	if counts {
		l.count(o)
	}
	if l.timeouts >= maxTimeouts {
		l.series.Stopped = fmt.Sprintf("%d rounds in a row took longer than %s", maxTimeouts, l.workload.Timeout)
	}
}

func (l *routeRun) count(o Outcome) {
	s := l.series
	s.Figures = append(s.Figures, o.Value)
	s.Attempts += o.Attempts
	s.Failures += o.Failures
	s.Pool = append(s.Pool, o.Pool...)
	if o.Err != nil {
		s.Errors[Describe(o.Err)] += max(1, o.Failures)
	}
}

// align cuts all series to the shortest one, because not all routes completed an interrupted round.
func align(series []*report.Series) {
	shortest := math.MaxInt
	for _, s := range series {
		shortest = min(shortest, len(s.Figures))
	}
	for _, s := range series {
		s.Figures = s.Figures[:shortest]
	}
}

// Describe returns one line for an error. Errors with the same cause get the same line, so that
// they can be counted.
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
