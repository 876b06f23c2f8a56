// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"container/list"
	"context"
	"fmt"
	"runtime"
	"sync"
	"time"
)

const (
	// longDelay is the scheduling delay from which the gateway is short of CPU time. With this
	// delay, a request waits about ten times as long, because as many goroutines handle it.
	longDelay = time.Millisecond
	// delayInterval is the least time between two looks at the scheduling delay.
	delayInterval = 100 * time.Millisecond
	// leastPerCPU is how many requests a caller can have in progress in any case, for each CPU of the
	// gateway. They are enough to use all of them.
	leastPerCPU = 4
	// maxTurnWait limits how long a request waits for its turn: a quarter of the time for a request,
	// as in the queues of kube-apiserver's priority and fairness.
	maxTurnWait = DefaultRequestTimeout / 4
)

// callerGate keeps one caller's requests from delaying those of all others. While the gateway is
// short of CPU time, each caller can have only a number of requests in progress, over all clusters.
// The caller's other requests wait for their turn in the order in which they arrived, and use no
// CPU time meanwhile. At other times, the gate lets all requests through.
//
// The limit follows the scheduling delay, as the window of a TCP connection follows the loss of
// packets: it falls fast and rises slowly. So requests to distant clusters, which wait for the
// network and not for a CPU, are hardly limited.
type callerGate struct {
	metrics *Metrics
	// delays returns the scheduling delay since it was called before.
	delays func() time.Duration
	// least is the lowest limit.
	least int
	// maxWait limits how long a request waits.
	maxWait time.Duration

	mu      sync.Mutex
	callers map[string]*callerQueue
	// limit is how many requests a caller can have in progress. 0 means no limit.
	limit int
	// looked is when the scheduling delay was looked at last.
	looked time.Time
}

// callerQueue has the requests of one caller.
type callerQueue struct {
	inProgress int
	// waiting has a channel for each request that waits. It is closed when it is the request's turn.
	waiting list.List
}

func newCallerGate(m *Metrics) *callerGate {
	return &callerGate{
		metrics: m, delays: new(schedulingDelays).next, least: leastPerCPU * runtime.GOMAXPROCS(0), maxWait: maxTurnWait,
		callers: map[string]*callerQueue{},
	}
}

// busyError is a request whose turn has not come in time.
type busyError struct{ inProgress, waiting int }

func (e *busyError) Error() string {
	return fmt.Sprintf("the gateway is short of CPU time. You already have %d requests in progress and %d that wait for their turn", e.inProgress, e.waiting)
}

// turn is the right of a request to be in progress. Its zero value is of a request that the gate
// does not know.
type turn struct {
	gate   *callerGate
	caller string
}

// enter waits for a request's turn. It fails with a *busyError or with the cause of ctx. The caller
// is empty for requests that need no turn.
func (g *callerGate) enter(ctx context.Context, caller string) (turn, error) {
	if caller == "" {
		return turn{}, nil
	}
	t := turn{gate: g, caller: caller}
	g.mu.Lock()
	q := g.callers[caller]
	if q == nil {
		q = &callerQueue{}
		g.callers[caller] = q
	}
	if q.inProgress >= g.least {
		g.adjustLocked(time.Now())
	}
	if q.waiting.Len() == 0 && g.admitsLocked(q) {
		q.inProgress++
		g.mu.Unlock()
		return t, nil
	}
	itsTurn := make(chan struct{})
	place := q.waiting.PushBack(itsTurn)
	g.mu.Unlock()

	g.metrics.turnsWaiting.Inc()
	g.metrics.turnsWaited.Inc()
	defer g.metrics.turnsWaiting.Dec()
	timer := time.NewTimer(g.maxWait)
	defer timer.Stop()
	var err error
	select {
	case <-itsTurn:
		return t, nil
	case <-timer.C:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-itsTurn: // at the last moment
		return t, nil
	default:
	}
	q.waiting.Remove(place)
	if err == nil {
		err = &busyError{q.inProgress, q.waiting.Len()}
	}
	return turn{}, err
}

// end ends a turn. It does nothing if it is called again.
func (t *turn) end() {
	g := t.gate
	if g == nil {
		return
	}
	t.gate = nil
	g.mu.Lock()
	defer g.mu.Unlock()
	q := g.callers[t.caller]
	q.inProgress--
	if q.waiting.Len() > 0 {
		g.adjustLocked(time.Now())
	}
	for q.waiting.Len() > 0 && g.admitsLocked(q) {
		close(q.waiting.Remove(q.waiting.Front()).(chan struct{}))
		q.inProgress++
	}
	if q.inProgress == 0 { // so none waits
		delete(g.callers, t.caller)
	}
}

// admitsLocked reports whether one more request of the caller can be in progress.
func (g *callerGate) admitsLocked(q *callerQueue) bool {
	return g.limit == 0 || q.inProgress < g.limit
}

// adjustLocked adjusts the limit to the scheduling delay, once in each interval. Only callers who
// have many requests in progress call it, so it costs nothing otherwise.
func (g *callerGate) adjustLocked(now time.Time) {
	since := now.Sub(g.looked)
	if since < delayInterval {
		return
	}
	g.looked = now
	delay := g.delays()
	if since > 10*delayInterval {
		g.limit = 0 // nobody had many requests meanwhile, and the delay is mostly of that time
		return
	}
	most := 0
	for _, q := range g.callers {
		most = max(most, q.inProgress)
	}
	switch {
	case delay >= 10*longDelay:
		g.limit = g.least
	case delay >= longDelay:
		if g.limit == 0 || g.limit > most {
			g.limit = most
		}
		g.limit = max(g.limit*3/4, g.least)
	case g.limit > 2*most:
		g.limit = 0 // nobody needs it
	case g.limit > 0:
		g.limit += max(g.limit/8, 1)
	}
}
