// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"sync"

	"k8s.io/klog/v2"

	"github.com/oam-dev/cluster-gateway/pkg/cluster"
)

// ClusterGetter returns what is known of a cluster at this moment, from memory.
type ClusterGetter interface {
	Get(name string) (*cluster.Cluster, bool)
}

// table holds the entry of each cluster that has been asked for.
type table struct {
	clusters ClusterGetter
	build    func(*cluster.Cluster, *series) (*transports, error)
	metrics  *Metrics
	logger   klog.Logger

	// mu may be held while a slot's is taken, and not the other way round.
	mu     sync.RWMutex
	slots  map[string]*slot
	closed bool
}

// slot is the place of one cluster in the table, over all its versions. Its lock makes one step of looking the cluster up and
// taking its entry, so that no request takes an entry of an older version than it, or a request before it, has seen.
type slot struct {
	series *series

	mu      sync.Mutex
	current *entry
	gone    bool // removed from the table; look again
	// draining are the entries that have been replaced and still serve what they had in flight.
	draining map[*entry]struct{}
	// inFlight counts requests in flight, against the limit of their class.
	inFlight [classes]int
}

// class is what a request is counted as.
type class int

const (
	// ordinary requests have a deadline.
	ordinary class = iota
	// streams are long-running: watches, followed logs, upgrades.
	streams
	// internal requests are the gateway's own, which are not limited.
	internal

	classes
)

// entry is one version of a cluster and its transports, or why there are none.
type entry struct {
	cluster    *cluster.Cluster
	transports *transports
	err        error

	// leaving ends, by leave, when the connections are about to be cut, some time later.
	leaving context.Context
	leave   context.CancelFunc

	// The following are guarded by slot.mu.
	refs    int
	retired bool

	disposeOnce sync.Once
}

// lease is an entry in use. Release it once.
type lease struct {
	*entry
	table *table
	slot  *slot
	class class
}

// Why there is no lease.
var (
	errNoCluster = errors.New("there is no such cluster")
	errTooMany   = errors.New("the cluster has too many requests in flight")
)

// acquire returns the current entry of a cluster. It fails with errNoCluster, or, when the cluster has limit requests of the class in
// flight already (none: 0 or less), with errTooMany; or with errShuttingDown. With errTooMany the lease says which cluster it is; there is
// nothing to release.
func (t *table) acquire(name string, as class, limit int) (*lease, error) {
	for {
		if _, known := t.clusters.Get(name); !known {
			return nil, errNoCluster
		}
		s := t.slot(name)
		if s == nil {
			return nil, errShuttingDown
		}
		s.mu.Lock()
		if s.gone {
			s.mu.Unlock()
			continue
		}
		// Once more, under the lock: the one above may have been overtaken.
		c, known := t.clusters.Get(name)
		if !known {
			s.mu.Unlock()
			t.dropUnused(name, s)
			return nil, errNoCluster
		}
		if limit > 0 && s.inFlight[as] >= limit {
			s.mu.Unlock()
			return &lease{entry: &entry{cluster: c}, slot: s}, errTooMany
		}
		idle := t.renewLocked(s, c)
		e := s.current
		e.refs++
		s.inFlight[as]++
		s.mu.Unlock()
		t.dispose(idle)
		return &lease{entry: e, table: t, slot: s, class: as}, nil
	}
}

// slot returns the place of a cluster; nil when the table is closed.
func (t *table) slot(name string) *slot {
	t.mu.RLock()
	s := t.slots[name]
	t.mu.RUnlock()
	if s != nil {
		return s
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	if s = t.slots[name]; s == nil {
		s = &slot{series: &series{metrics: t.metrics, cluster: name}}
		t.slots[name] = s
	}
	return s
}

// dropUnused takes back a slot that was made for a cluster which was deleted before it got an entry: nobody will tell of its
// deletion again.
func (t *table) dropUnused(name string, s *slot) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.slots[name] == s && s.current == nil && len(s.draining) == 0 {
		s.gone = true
		delete(t.slots, name)
	}
}

// renewLocked makes sure that s.current is of the version c. It returns the former entry if that is to be disposed of now.
func (t *table) renewLocked(s *slot, c *cluster.Cluster) *entry {
	if s.current != nil && s.current.cluster.Fingerprint() == c.Fingerprint() {
		return nil
	}
	idle := s.retireLocked()
	e := &entry{cluster: c, err: c.Err()}
	e.leaving, e.leave = context.WithCancel(context.Background())
	if e.err == nil {
		if e.transports, e.err = t.build(c, s.series); e.err == nil {
			t.metrics.transports.Inc()
		}
	}
	s.current = e
	return idle
}

// retireLocked takes the current entry out of use, and returns it if nothing uses it any more.
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

// changed follows the Secret: a version that is no longer current is retired, and the transports of a cluster that is gone are
// closed at once, with what they have in flight.
func (t *table) changed(name string, c *cluster.Cluster) {
	t.mu.Lock()
	s := t.slots[name]
	if s != nil && c == nil {
		delete(t.slots, name)
		// Before a cluster of the same name can have series of its own.
		s.series.end()
	}
	t.mu.Unlock()
	if s == nil {
		return
	}
	s.mu.Lock()
	var ended []*entry
	switch {
	case c == nil:
		s.gone = true
		if idle := s.retireLocked(); idle != nil {
			ended = append(ended, idle)
		}
		for e := range s.draining {
			ended = append(ended, e)
		}
	case s.current != nil && s.current.cluster.Fingerprint() != c.Fingerprint():
		ended = append(ended, s.retireLocked())
	}
	s.mu.Unlock()
	for _, e := range ended {
		t.dispose(e)
	}
}

// reconnect retires the current entry of a cluster, so that requests from now on take new connections, and tells what is in flight that
// its connection is about to be cut.
func (t *table) reconnect(name string) {
	t.mu.RLock()
	s := t.slots[name]
	t.mu.RUnlock()
	if s == nil {
		return
	}
	s.mu.Lock()
	idle := s.retireLocked()
	for e := range s.draining {
		e.leave()
	}
	s.mu.Unlock()
	t.dispose(idle)
}

// gone reports whether the cluster was deleted since; it may exist anew.
func (l *lease) gone() bool {
	l.slot.mu.Lock()
	defer l.slot.mu.Unlock()
	return l.slot.gone
}

// release gives the entry back.
func (l *lease) release() {
	l.slot.mu.Lock()
	l.refs--
	l.slot.inFlight[l.class]--
	var idle *entry
	if l.refs == 0 && l.retired {
		idle = l.entry
		delete(l.slot.draining, l.entry)
	}
	l.slot.mu.Unlock()
	l.table.dispose(idle)
}

// dispose closes the transports of an entry; nil is nothing to do. Closing is done without any lock held.
func (t *table) dispose(e *entry) {
	if e == nil || e.transports == nil {
		return
	}
	e.leave()
	e.disposeOnce.Do(func() {
		t.metrics.transports.Dec()
		if err := e.transports.close(); err != nil {
			t.logger.Info("Closing the connections to a cluster failed", "cluster", e.cluster.Name, "err", err)
		}
	})
}

// closeAll closes everything, in flight or not, for good.
func (t *table) closeAll() {
	t.mu.Lock()
	t.closed = true
	names := make([]string, 0, len(t.slots))
	for name := range t.slots {
		names = append(names, name)
	}
	t.mu.Unlock()
	for _, name := range names {
		t.changed(name, nil)
	}
}
