// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package dialer

import (
	"sync"
	"time"
)

// deadline wakes the waiters of a condition at a given time. Its methods must be called under the
// condition's lock.
type deadline struct {
	cond  *sync.Cond
	timer *time.Timer // nil if none is set, or if it has fired
	// passed is set by the timer. It is not computed from the clock: if the wall clock were set back
	// between the two, a waiter would sleep forever.
	passed bool
}

// set replaces the deadline. The zero time means none.
func (d *deadline) set(t time.Time) {
	d.stop()
	d.passed = false
	if t.IsZero() {
		return
	}
	wait := time.Until(t)
	if wait <= 0 {
		d.passed = true
		d.cond.Broadcast()
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(wait, func() {
		d.cond.L.Lock()
		defer d.cond.L.Unlock()
		// A timer that fired while it was being replaced must have no effect.
		if d.timer == timer {
			d.timer, d.passed = nil, true
			d.cond.Broadcast()
		}
	})
	d.timer = timer
}

func (d *deadline) stop() {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
}
