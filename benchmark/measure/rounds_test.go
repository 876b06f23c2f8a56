// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"context"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/oam-dev/cluster-gateway/benchmark/report"
)

// serve returns a route to a server that calls handler before it responds.
func serve(t *testing.T, name string, handler http.HandlerFunc) *Route {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	r, err := NewRoute(name, name, &rest.Config{Host: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func answers(http.ResponseWriter, *http.Request) {}

// slower responds after a delay, and records the actual delay of each request, because a busy
// machine wakes up late.
type slower struct {
	delay time.Duration
	mu    sync.Mutex
	took  []time.Duration
}

func (s *slower) ServeHTTP(http.ResponseWriter, *http.Request) {
	began := time.Now()
	time.Sleep(s.delay)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.took = append(s.took, time.Since(began))
}

func (s *slower) median() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	slices.Sort(s.took)
	return s.took[len(s.took)/2]
}

// half refuses every second request at once.
func half() http.HandlerFunc {
	var count atomic.Int64
	return func(w http.ResponseWriter, _ *http.Request) {
		if count.Add(1)%2 == 0 {
			http.Error(w, `{"kind":"Status","message":"no agent is connected"}`, http.StatusServiceUnavailable)
		}
	}
}

func run(t *testing.T, w Workload, routes ...*Route) *report.Report {
	t.Helper()
	r := &report.Report{Series: Rounds(t.Context(), w, routes, nil)}
	r.Finish()
	return r
}

// TestSameRouteTwice: in most runs of a route against itself, the interval must contain the ratio
// 1. By the definition of 95 %, one run in twenty may miss it, so there are several runs.
func TestSameRouteTwice(t *testing.T) {
	const runs, wanted = 10, 7
	direct, again := serve(t, report.Direct, answers), serve(t, "again", answers)
	contain := 0
	for range runs {
		c := run(t, GetWorkload(150), direct, again).Find(Get, "again", 0).ToDirect
		if c == nil {
			t.Fatal("not compared")
		}
		t.Logf("ratio %.3f (%.3f to %.3f)", c.Ratio.Value, c.Ratio.Low, c.Ratio.High)
		if c.Ratio.Contains(1) {
			contain++
		}
	}
	if contain < wanted {
		t.Errorf("the interval contains 1 in %d of %d runs", contain, runs)
	}
}

func TestSlowRouteIsFound(t *testing.T) {
	slow := &slower{delay: 5 * time.Millisecond}
	r := run(t, GetWorkload(150), serve(t, report.Direct, answers), serve(t, "slow", slow.ServeHTTP))
	c := r.Find(Get, "slow", 0).ToDirect
	if c == nil {
		t.Fatal("not compared")
	}
	t.Logf("difference %.2f ms (%.2f to %.2f)", 1e3*c.Difference.Value, 1e3*c.Difference.Low, 1e3*c.Difference.High)
	// What both routes have in common, such as the network and the load of the machine, is not part of
	// the difference.
	if want := slow.median().Seconds(); c.Difference.Value < want/2 || c.Difference.Value > 2*want {
		t.Errorf("a delay of %.2f ms was measured as %.2f ms", 1e3*want, 1e3*c.Difference.Value)
	}
}

func TestFailingRouteIsNotFast(t *testing.T) {
	r := run(t, GetWorkload(100), serve(t, report.Direct, (&slower{delay: time.Millisecond}).ServeHTTP), serve(t, "flaky", half()))
	s := r.Find(Get, "flaky", 0)
	if !s.Failing() || s.Failures != 50 || s.Attempts != 100 {
		t.Errorf("failing %t with %d of %d", s.Failing(), s.Failures, s.Attempts)
	}
	if s.ToDirect != nil {
		t.Errorf("a route on which half of the requests fail has the ratio %+v", s.ToDirect.Ratio)
	}
	if s.Errors["HTTP 503 no agent is connected"] != 50 {
		t.Errorf("errors %v", s.Errors)
	}
	load := run(t, LoadWorkload(4, 4, 500*time.Millisecond), serve(t, report.Direct, answers), serve(t, "flaky", half())).Find(Load, "flaky", 4)
	if !load.Failing() || load.ToDirect != nil {
		t.Errorf("under load: failing %t, %+v", load.Failing(), load.ToDirect)
	}
}

// TestStuckRouteIsGivenUp: a route that never responds does not stop the measurement of the others.
func TestStuckRouteIsGivenUp(t *testing.T) {
	w := GetWorkload(10)
	w.Timeout, w.Warmup = 2*time.Second, 0 // also of the direct route, which must never take that long
	stuck := serve(t, "stuck", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	r := run(t, w, serve(t, report.Direct, answers), stuck)
	s := r.Find(Get, "stuck", 0)
	if s.Failures != maxTimeouts || !strings.Contains(s.Stopped, "in a row") {
		t.Errorf("%d failures, stopped: %q", s.Failures, s.Stopped)
	}
	if direct := r.Find(Get, report.Direct, 0); direct.Failing() || len(direct.Figures) != 10 {
		t.Errorf("the direct route has %d figures", len(direct.Figures))
	}
}

func TestInterruptKeepsWholeRounds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	w := GetWorkload(1000)
	series := Rounds(ctx, w, []*Route{serve(t, report.Direct, answers), serve(t, "other", answers)}, func(done, _ int) {
		if done == 30 {
			cancel()
		}
	})
	for _, s := range series {
		if len(s.Figures) != 30 || s.Failures != 0 {
			t.Errorf("%s: %d figures, %d failures", s.Route, len(s.Figures), s.Failures)
		}
	}
}
