// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// newTestGate returns a gate with a limit, which it never adjusts.
func newTestGate(limit int) *callerGate {
	g := newCallerGate(NewMetrics())
	g.limit, g.looked = limit, time.Now().Add(time.Hour)
	return g
}

func (g *callerGate) mustEnter(t *testing.T, caller string) turn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), maxWait)
	defer cancel()
	its, err := g.enter(ctx, caller)
	if err != nil {
		t.Fatalf("%s: %v", caller, err)
	}
	return its
}

// waiting returns how many requests of a caller wait.
func (g *callerGate) waiting(caller string) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	if q := g.callers[caller]; q != nil {
		return q.waiting.Len()
	}
	return 0
}

func TestCallersWaitForTheirTurn(t *testing.T) {
	g := newTestGate(2)
	first, second := g.mustEnter(t, "greedy"), g.mustEnter(t, "greedy")
	// The others of this caller wait, in order.
	order := make(chan int, 3)
	for i := range 3 {
		go func() {
			its := g.mustEnter(t, "greedy")
			order <- i
			its.end()
		}()
		eventually(t, "the request waits", func() bool { return g.waiting("greedy") == i+1 })
	}
	// Nobody else does, nor do the gateway's own requests.
	other := g.mustEnter(t, "other")
	for range 5 {
		own := g.mustEnter(t, "")
		own.end()
	}
	select {
	case i := <-order:
		t.Fatalf("request %d did not wait", i)
	default:
	}
	first.end()
	for want := range 3 {
		if got := <-order; got != want {
			t.Errorf("it was the turn of request %d, want %d", got, want)
		}
	}
	first.end() // again
	second.end()
	other.end()
	eventually(t, "nothing is left", func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return len(g.callers) == 0
	})
}

func TestWaitingForATurnEnds(t *testing.T) {
	g := newTestGate(1)
	its := g.mustEnter(t, "greedy")
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("gone")
	cancel(gone)
	if _, err := g.enter(ctx, "greedy"); !errors.Is(err, gone) {
		t.Errorf("the error is %v, want the cause of the context", err)
	}
	g.maxWait = time.Millisecond
	var busy *busyError
	if _, err := g.enter(t.Context(), "greedy"); !errors.As(err, &busy) || busy.inProgress != 1 || busy.waiting != 0 {
		t.Errorf("the error is %v", err)
	}
	its.end()
	again := g.mustEnter(t, "greedy")
	again.end()
	if len(g.callers) != 0 {
		t.Error("a caller is left")
	}
}

// A turn that comes at the moment when the request gives up is not lost.
func TestNoTurnIsLost(t *testing.T) {
	for name, gap := range map[string]time.Duration{"a limit": 0, "a limit and gaps": 20 * time.Microsecond} {
		t.Run(name, func(t *testing.T) {
			g := newTestGate(3)
			g.maxWait, g.gap = 100*time.Microsecond, gap
			var group sync.WaitGroup
			for n := range 50 {
				group.Go(func() {
					caller := "greedy"
					if n == 0 {
						caller = "other"
					}
					for range 100 {
						if its, err := g.enter(t.Context(), caller); err == nil {
							runtime.Gosched()
							its.end()
						}
					}
				})
			}
			group.Wait()
			if len(g.callers) != 0 {
				t.Errorf("requests are left in progress: %+v", g.callers["greedy"])
			}
		})
	}
}

// While another caller is active, the requests of a caller with many start one after the other.
func TestCallersArePaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const gap, burst, requests = 10 * time.Millisecond, 4, 54
		g := newTestGate(0)
		g.gap, g.least = gap, burst
		// send sends the requests of the greedy caller, each of which takes some time, and returns when
		// they started.
		send := func() (starts []time.Duration) {
			var mu sync.Mutex
			var group sync.WaitGroup
			began := time.Now()
			for range requests {
				group.Go(func() {
					its := g.mustEnter(t, "greedy")
					mu.Lock()
					starts = append(starts, time.Since(began))
					mu.Unlock()
					time.Sleep(200 * time.Millisecond) // a distant cluster
					its.end()
				})
			}
			group.Wait()
			return starts
		}
		if last := slices.Max(send()); last != 0 {
			t.Errorf("a caller who is alone waits for %s", last)
		}
		others := make(chan struct{})
		go func() {
			defer close(others)
			for range 7 {
				began := time.Now()
				its := g.mustEnter(t, "other")
				if d := time.Since(began); d != 0 {
					t.Errorf("the other caller waits for %s", d)
				}
				its.end()
				time.Sleep(100 * time.Millisecond)
			}
		}()
		synctest.Wait()
		starts := send()
		slices.Sort(starts)
		for n, start := range starts {
			if want := max(0, n-burst+1) * int(gap); n >= burst && (start < time.Duration(want)-gap || start > time.Duration(want)+gap) {
				t.Errorf("request %d starts after %s, want about %s", n, start, time.Duration(want))
			}
		}
		if starts[burst-1] != 0 {
			t.Errorf("the first requests start after %s", starts[:burst])
		}
		<-others
		time.Sleep(activeTime)
		if last := slices.Max(send()); last != 0 {
			t.Errorf("a caller who is alone again waits for %s", last)
		}
		if len(g.callers) != 0 {
			t.Errorf("requests are left: %+v", g.callers)
		}
	})
}

func TestGapFollowsTheDelay(t *testing.T) {
	g := newTestGate(0)
	g.longest = 10 * time.Millisecond
	now := time.Now()
	g.looked = now
	var delay time.Duration
	g.delays = func() time.Duration { return delay }
	after := func(d time.Duration, started int, other bool, want time.Duration) {
		t.Helper()
		now, delay = now.Add(delayInterval), d
		g.noticeLocked("greedy", now)
		if other {
			g.noticeLocked("other", now)
		}
		g.callers["greedy"] = &callerQueue{inProgress: 10, started: started}
		g.adjustLocked(now)
		if g.gap != want {
			t.Errorf("after a delay of %s with %d requests, the gap is %s, want %s", d, started, g.gap, want)
		}
	}
	after(smallDelay, 100, false, 0) // alone
	after(smallDelay-1, 100, true, 0)
	after(smallDelay, 100, true, time.Millisecond*4/3) // without it, there was 1 ms
	after(smallDelay, 100, true, time.Millisecond*4/3*4/3)
	after(0, 100, true, 1_777_777-1_777_777/8)
	for range 20 {
		g.adjustGapLocked(smallDelay, time.Millisecond)
	}
	after(smallDelay, 10, true, g.longest)
	after(0, 4, true, 0) // nobody has more than 40 requests per second
}

func TestLimitFollowsTheDelay(t *testing.T) {
	g := newTestGate(0)
	var delay time.Duration
	g.delays = func() time.Duration { return delay }
	g.least = 4
	g.callers["greedy"] = &callerQueue{inProgress: 100}
	now := time.Now()
	g.looked = now
	after := func(interval, d time.Duration, inProgress, want int) {
		t.Helper()
		now, delay = now.Add(interval), d
		g.callers["greedy"].inProgress = inProgress
		g.adjustLocked(now)
		if g.limit != want {
			t.Errorf("after %s with a delay of %s, the limit is %d, want %d", interval, d, g.limit, want)
		}
	}
	after(delayInterval, longDelay-1, 100, 0)
	after(delayInterval, longDelay, 100, 75)
	after(delayInterval/2, longDelay, 75, 75) // too soon
	after(delayInterval/2, longDelay, 75, 56)
	after(delayInterval, 0, 56, 63)
	after(delayInterval, longDelay, 40, 30) // nobody had more
	after(delayInterval, 10*longDelay, 30, 4)
	after(delayInterval, longDelay, 4, 4) // the least
	for want := 5; want <= 9; want++ {
		after(delayInterval, 0, 4, want)
	}
	after(delayInterval, 0, 4, 0) // nobody needs a limit
	after(delayInterval, 10*longDelay, 100, 4)
	after(11*delayInterval, 10*longDelay, 100, 0) // this delay is an old one
}

func TestSchedulingDelay(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	var delays schedulingDelays
	if got := delays.next(); got != 0 {
		t.Errorf("the first delay is %s", got)
	}
	// Ten goroutines that compute for 5 ms in turns wait for each other.
	var group sync.WaitGroup
	for range 10 {
		group.Go(func() {
			for range 20 {
				for began := time.Now(); time.Since(began) < 5*time.Millisecond; {
				}
				runtime.Gosched()
			}
		})
	}
	group.Wait()
	if got := delays.next(); got < 5*time.Millisecond {
		t.Errorf("the delay of goroutines that wait for nine others is only %s", got)
	}
}

// The turn of an upgrade ends when it becomes a stream. Watches need none.
func TestTurnsOfRequests(t *testing.T) {
	entered, release := make(chan struct{}, 10), make(chan struct{})
	s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Header.Get("Upgrade") != "":
			echoUpgrade(w, r)
		case r.URL.Path == "/wait":
			entered <- struct{}{}
			<-release
		}
	})
	g := newGateway(t, nil)
	gate := g.handler.callers
	gate.limit, gate.looked, gate.maxWait = 1, time.Now().Add(time.Hour), 50*time.Millisecond
	g.set(s.secret("one"))
	g.set(s.secret("two"))
	for range 3 {
		conn := g.raw("GET " + basePath + "one/proxy/exec HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: test\r\n" + userHeader + ": greedy\r\n\r\n")
		if code, body := readStatus(t, conn); code != http.StatusSwitchingProtocols {
			t.Fatalf("%d %s", code, body)
		}
	}
	done := make(chan struct{})
	go func() { defer close(done); g.get("one", "/wait", userHeader, "greedy") }()
	<-entered
	resp, body := g.get("two", "/", userHeader, "greedy") // all clusters count
	wantCode(t, resp, body, http.StatusTooManyRequests)
	diff(t, "Retry-After", "1", resp.Header.Get("Retry-After"))
	if want := "the gateway is short of CPU time. You already have 1 request in progress and 0 that wait for their turn; try again later"; !strings.Contains(body, want) {
		t.Errorf("%s does not say %q", body, want)
	}
	if m := g.metrics(); !strings.Contains(m, "requests_total{cluster=two,code=429,route=direct,verb=get} 1\n") ||
		!strings.Contains(m, "requests_waited_for_turn_total{} 1\n") || !strings.Contains(m, "requests_waiting_for_turn{} 0\n") {
		t.Error(m)
	}
	for _, request := range [][]string{{"/api/v1/pods?watch=1", "greedy"}, {"/", "other"}} {
		resp, body := g.get("two", request[0], userHeader, request[1])
		wantCode(t, resp, body, http.StatusOK)
	}
	close(release)
	<-done
	resp, body = g.get("two", "/", userHeader, "greedy")
	wantCode(t, resp, body, http.StatusOK)
}

// A request that waits for its cluster for long does not keep the caller's other requests from
// having their turn.
func TestTurnsOfIdleRequests(t *testing.T) {
	entered, release := make(chan struct{}, 10), make(chan struct{})
	s := newAPIServer(t, func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/wait" {
			entered <- struct{}{}
			<-release
		}
	})
	g := newGateway(t, nil)
	gate := g.handler.callers
	gate.limit, gate.looked, gate.maxWait, gate.idle = 2, time.Now().Add(time.Hour), time.Minute, 100*time.Millisecond
	g.set(s.secret("stuck"))
	g.set(s.secret("healthy"))
	var group sync.WaitGroup
	defer group.Wait()
	defer close(release)
	for range 6 { // more than have a turn at once
		group.Go(func() { g.get("stuck", "/wait", userHeader, "busy") })
	}
	for range 6 {
		<-entered
	}
	resp, body := g.get("healthy", "/", userHeader, "busy")
	wantCode(t, resp, body, http.StatusOK)
}
