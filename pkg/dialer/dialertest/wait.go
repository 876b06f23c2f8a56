// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package dialertest

import (
	"context"
	"runtime"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// HangTimeout is how long a step of a test may take before it counts as hanging. It is long because
// tests run on busy machines; they assert nothing else about time.
const HangTimeout = 30 * time.Second

// Within receives from ch. It ends the test if that hangs; what names the awaited event.
func Within[T any](t testing.TB, ch <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(HangTimeout):
		t.Fatalf("%s hangs", what)
		panic("unreachable")
	}
}

// Eventually waits until ok returns true, for events that no channel reports. It ends the test if
// that hangs; what names the awaited state.
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for begin := time.Now(); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Since(begin) > HangTimeout {
			t.Fatalf("waiting for %s: it hangs", what)
		}
	}
}

// DuringAttack calls check again and again until stop is called, which must be before the end of
// the test. check shows that others do not notice an attack. stop returns how many bytes of memory
// were in use at most.
func DuringAttack(check func()) (stop func() (peak uint64)) {
	stopped := make(chan struct{})
	var running sync.WaitGroup
	var peak uint64
	running.Go(func() {
		for {
			check()
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			peak = max(peak, m.HeapAlloc)
			select {
			case <-stopped:
				return
			default:
			}
		}
	})
	return func() uint64 {
		close(stopped)
		running.Wait()
		return peak
	}
}

// ObservedContext is a context that shows that something waits for its end, and so that a dial has
// begun. Use NewObservedContext.
type ObservedContext struct {
	context.Context
	once     sync.Once
	observed chan struct{}
}

// NewObservedContext returns a context that ends with parent.
func NewObservedContext(parent context.Context) *ObservedContext {
	return &ObservedContext{Context: parent, observed: make(chan struct{})}
}

// Observed returns a channel that is closed by the first call of Done.
func (c *ObservedContext) Observed() <-chan struct{} { return c.observed }

// Done implements context.Context.
func (c *ObservedContext) Done() <-chan struct{} {
	c.once.Do(func() { close(c.observed) })
	return c.Context.Done()
}

// NoLeak waits until no goroutine runs except those that options allow. It waits longer than goleak
// does: a stock agent's own dial may take five seconds to fail.
func NoLeak(t testing.TB, options ...goleak.Option) {
	t.Helper()
	var err error
	for begin := time.Now(); time.Since(begin) < HangTimeout; {
		if err = goleak.Find(options...); err == nil {
			return
		}
	}
	t.Error(err)
}
