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
	// smallDelay is the scheduling delay from which callers are paced. It is far from a shortage, but
	// what one request waits for in all is some tens of delays.
	smallDelay = 200 * time.Microsecond
	// leastRatePerCPU is how many requests a caller can start in each second in any case, for each CPU
	// of the gateway.
	leastRatePerCPU = 100
	// idleTurn is how long a request waits for its cluster before its turn ends. It uses no CPU time
	// of the gateway then. Otherwise, requests to a cluster that does not answer would keep the
	// caller's requests to others from having a turn.
	idleTurn = time.Second
	// activeTime is for how long others notice a caller after a request.
	activeTime = time.Second
	// timerDelay is how late a timer may be. A caller catches up with what it missed by that.
	timerDelay = time.Millisecond
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
//
// While another caller is active, a caller with many requests is paced as well: its requests start
// one after the other, with gaps between them, and not whenever an earlier one ends. Otherwise they
// would use all the CPU time that there is, and the requests of others would find the gateway busy
// each time. How many are in progress says nothing about that.
type callerGate struct {
	metrics *Metrics
	// delays returns the scheduling delay since it was called before.
	delays func() time.Duration
	// least is the lowest limit, and longest the longest gap.
	least   int
	longest time.Duration
	// maxWait limits how long a request waits.
	maxWait time.Duration
	// idle is how long a request keeps its turn while the cluster does not answer.
	idle time.Duration

	mu      sync.Mutex
	callers map[string]*callerQueue
	// limit is how many requests a caller can have in progress. 0 means no limit.
	limit int
	// gap is the time between the starts of two requests of a caller, while others are active. 0 means
	// none.
	gap time.Duration
	// looked is when the scheduling delay was looked at last.
	looked time.Time
	// latest has the two callers who had a request last.
	latest [2]activeCaller
}

type activeCaller struct {
	name string
	at   time.Time
}

// callerQueue has the requests of one caller.
type callerQueue struct {
	inProgress int
	// started is how many were started since the scheduling delay was looked at.
	started int
	// waiting has a channel for each request that waits. It is closed when it is the request's turn.
	waiting list.List
	// next is when the next one may start, while the caller is paced. The timer is nil unless it is
	// set to that time.
	next  time.Time
	timer *time.Timer
}

func newCallerGate(m *Metrics) *callerGate {
	return &callerGate{
		metrics: m, delays: new(schedulingDelays).next, maxWait: maxTurnWait, idle: idleTurn,
		least: leastPerCPU * runtime.GOMAXPROCS(0), longest: time.Second / time.Duration(leastRatePerCPU*runtime.GOMAXPROCS(0)),
		callers: map[string]*callerQueue{},
	}
}

// busyError is a request whose turn has not come in time.
type busyError struct{ inProgress, waiting int }

func (e *busyError) Error() string {
	requests := "requests"
	if e.inProgress == 1 {
		requests = "request"
	}
	return fmt.Sprintf("the gateway is short of CPU time. You already have %d %s in progress and %d that wait for their turn", e.inProgress, requests, e.waiting)
}

// turn is the right of a request to be in progress. Its zero value is of a request that the gate
// does not know.
type turn struct {
	gate   *callerGate
	caller string
	ended  bool // guarded by the gate's lock
}

// enter waits for a request's turn. It fails with a *busyError or with the cause of ctx. The caller
// is empty for requests that need no turn.
func (g *callerGate) enter(ctx context.Context, caller string) (turn, error) {
	if caller == "" {
		return turn{}, nil
	}
	t := turn{gate: g, caller: caller}
	g.mu.Lock()
	now := time.Now()
	g.noticeLocked(caller, now)
	q := g.callers[caller]
	if q == nil {
		q = &callerQueue{}
		g.callers[caller] = q
	}
	if q.inProgress >= g.least {
		g.adjustLocked(now)
	}
	if q.waiting.Len() == 0 && g.startsLocked(caller, q, now, time.Duration(g.least)*g.gap) {
		g.mu.Unlock()
		return t, nil
	}
	itsTurn := make(chan struct{})
	place := q.waiting.PushBack(itsTurn)
	g.awaitNextLocked(caller, q, now)
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
	g.forgetLocked(caller, q)
	return turn{}, err
}

// end ends a turn. It does nothing if it is called again.
func (t *turn) end() {
	g := t.gate
	if g == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if t.ended {
		return
	}
	t.ended = true
	q := g.callers[t.caller]
	q.inProgress--
	now := time.Now()
	if q.waiting.Len() > 0 {
		g.adjustLocked(now)
	}
	g.startWaitingLocked(t.caller, q, now)
	g.forgetLocked(t.caller, q)
}

// whileIdle ends the turn if its request has to wait for its cluster for long. The caller stops it
// when the cluster answers.
func (t *turn) whileIdle() (stop func() bool) {
	if t.gate == nil {
		return func() bool { return true }
	}
	return time.AfterFunc(t.gate.idle, t.end).Stop
}

// startWaitingLocked starts the requests whose turn it is.
func (g *callerGate) startWaitingLocked(caller string, q *callerQueue, now time.Time) {
	for q.waiting.Len() > 0 && g.startsLocked(caller, q, now, timerDelay) {
		close(q.waiting.Remove(q.waiting.Front()).(chan struct{}))
	}
	g.awaitNextLocked(caller, q, now)
}

// awaitNextLocked sets the caller's timer if a request waits only for the end of a gap.
func (g *callerGate) awaitNextLocked(caller string, q *callerQueue, now time.Time) {
	if q.timer != nil || q.waiting.Len() == 0 || !g.admitsLocked(q) {
		return
	}
	q.timer = time.AfterFunc(max(q.next.Sub(now), 0), func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		q.timer = nil
		if q.waiting.Len() > 0 { // so it is still the queue of the caller
			g.startWaitingLocked(caller, q, time.Now())
		}
	})
}

// forgetLocked removes the queue of a caller who has no request.
func (g *callerGate) forgetLocked(caller string, q *callerQueue) {
	if q.inProgress > 0 || q.waiting.Len() > 0 {
		return
	}
	if q.timer != nil {
		q.timer.Stop()
	}
	delete(g.callers, caller)
}

// noticeLocked notes that a caller is active.
func (g *callerGate) noticeLocked(caller string, now time.Time) {
	if g.latest[0].name != caller {
		g.latest[1] = g.latest[0]
	}
	g.latest[0] = activeCaller{caller, now}
}

// othersLocked reports whether somebody else than the caller is active.
func (g *callerGate) othersLocked(caller string, now time.Time) bool {
	for _, c := range g.latest {
		if c.name != "" && c.name != caller && now.Sub(c.at) < activeTime {
			return true
		}
	}
	return false
}

// startsLocked starts a request of the caller if its turn has come. A caller who is behind its pace
// catches up, but not with more than this time.
func (g *callerGate) startsLocked(caller string, q *callerQueue, now time.Time, behind time.Duration) bool {
	if !g.admitsLocked(q) {
		return false
	}
	if g.gap > 0 && g.othersLocked(caller, now) {
		if q.next.After(now) {
			return false
		}
		if earliest := now.Add(-behind); q.next.Before(earliest) {
			q.next = earliest
		}
		q.next = q.next.Add(g.gap)
	}
	q.inProgress++
	q.started++
	return true
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
		g.limit, g.gap = 0, 0 // nobody had many requests meanwhile, and the delay is mostly of that time
		for _, q := range g.callers {
			q.started = 0
		}
		return
	}
	most, started := 0, 1
	for _, q := range g.callers {
		most, started = max(most, q.inProgress), max(started, q.started)
		q.started = 0
	}
	if g.othersLocked(g.latest[0].name, now) {
		g.adjustGapLocked(delay, since/time.Duration(started))
	} else {
		g.gap = 0
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

// adjustGapLocked adjusts the gap. Without it, the caller with the most requests had one of this
// length.
func (g *callerGate) adjustGapLocked(delay, without time.Duration) {
	switch {
	case delay >= smallDelay:
		g.gap = min(max(g.gap, without)*4/3, g.longest)
	case g.gap < without/2:
		g.gap = 0 // nobody needs it
	default:
		g.gap -= g.gap / 8
	}
}
