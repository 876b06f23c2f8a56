// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"sync"

	"github.com/oam-dev/cluster-gateway/pkg/cluster"
)

// slot is the place of one cluster in the table, over all its versions. Under its lock, the cluster
// is looked up and its entry is taken in one step, so that no request uses an entry of an older
// version than it, or a request before it, has seen.
type slot struct {
	metrics *clusterMetrics
	gate    dialGate

	mu      sync.Mutex
	current *entry
	// gone is set when the slot has been removed from the table. Whoever finds it so has to look
	// again.
	gone bool
	// draining are the entries that were replaced and still serve requests.
	draining map[*entry]struct{}
	// inFlight counts the requests of each class, and callers those of each caller who has any.
	inFlight counts
	callers  map[string]counts
}

// retireLocked takes the current entry out of use. It returns the entry if no request uses it any
// more. It is called with s.mu held.
func (s *slot) retireLocked() *entry {
	e := s.current
	s.current = nil
	if e == nil {
		return nil
	}
	e.retired = true
	if e.refs > 0 {
		if s.draining == nil {
			s.draining = map[*entry]struct{}{}
		}
		s.draining[e] = struct{}{}
		return nil
	}
	return e
}

// entry is one version of a cluster: its transports, or the reason why there are none.
type entry struct {
	cluster    *cluster.Cluster
	transports *transports
	err        error

	// closing ends when the connections are about to be closed; announceClosing ends it.
	closing         context.Context
	announceClosing context.CancelFunc

	// refs and retired are guarded by slot.mu.
	refs    int
	retired bool

	disposeOnce sync.Once
}

// newEntry returns the entry of c, without transports.
func newEntry(c *cluster.Cluster) *entry {
	e := &entry{cluster: c, err: c.Err()}
	e.closing, e.announceClosing = context.WithCancel(context.Background())
	return e
}

// lease is an entry in use, and a place in its cluster's limits. It must be released once.
type lease struct {
	*entry
	table *table
	slot  *slot
	class class
	// caller is the name of the user, or empty for the gateway itself.
	caller string
}

// countLocked adds n requests of the lease's class. It is called with slot.mu held.
func (l *lease) countLocked(n int) {
	s := l.slot
	s.inFlight[l.class] += n
	if l.caller == "" {
		return
	}
	has := s.callers[l.caller]
	has[l.class] += n
	if has == (counts{}) {
		delete(s.callers, l.caller)
		return
	}
	if s.callers == nil {
		s.callers = map[string]counts{}
	}
	s.callers[l.caller] = has
}

// gone reports whether the cluster was deleted since. It may be registered again.
func (l *lease) gone() bool {
	l.slot.mu.Lock()
	defer l.slot.mu.Unlock()
	return l.slot.gone
}

// becomeStream moves the lease of an accepted upgrade from the requests to the streams.
func (l *lease) becomeStream() {
	l.slot.mu.Lock()
	defer l.slot.mu.Unlock()
	l.countLocked(-1)
	l.class = classStream
	l.countLocked(1)
}

// release returns the entry.
func (l *lease) release() {
	l.slot.mu.Lock()
	l.refs--
	l.countLocked(-1)
	var idle *entry
	if l.refs == 0 && l.retired {
		idle = l.entry
		delete(l.slot.draining, l.entry)
	}
	l.slot.mu.Unlock()
	l.table.dispose(idle)
}
