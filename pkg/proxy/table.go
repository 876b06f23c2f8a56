// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
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
	build    func(*cluster.Cluster) (*transports, error)
	metrics  *Metrics
	logger   klog.Logger

	mu    sync.RWMutex
	slots map[string]*slot
}

// slot is the place of one cluster in the table, over all its versions. Its lock makes one step of looking the cluster up and
// taking its entry, so that no request takes an entry of an older version than it, or a request before it, has seen.
type slot struct {
	mu      sync.Mutex
	current *entry
	gone    bool // removed from the table; look again
	// ordinary counts requests in flight that are not long-running, against the limit.
	ordinary int
}

// entry is one version of a cluster and its transports, or why there are none.
type entry struct {
	cluster    *cluster.Cluster
	transports *transports
	err        error

	// The following are guarded by slot.mu.
	refs    int
	retired bool

	disposeOnce sync.Once
}

// lease is an entry in use. Release it once.
type lease struct {
	*entry
	table    *table
	slot     *slot
	ordinary bool
}

// acquire returns the current entry of a cluster. ok is false when there is no such cluster. within is false when ordinary is
// set and the cluster has limit ordinary requests in flight already; there is nothing to release then.
func (t *table) acquire(name string, ordinary bool, limit int) (l *lease, ok, within bool) {
	for {
		c, known := t.clusters.Get(name)
		if !known {
			return nil, false, false
		}
		s := t.slot(name)
		s.mu.Lock()
		if s.gone {
			s.mu.Unlock()
			continue
		}
		// Once more, under the lock: the one above may have been overtaken.
		if c, known = t.clusters.Get(name); !known {
			s.mu.Unlock()
			return nil, false, false
		}
		if ordinary && limit > 0 && s.ordinary >= limit {
			s.mu.Unlock()
			return &lease{entry: &entry{cluster: c}}, true, false
		}
		idle := t.renewLocked(s, c)
		e := s.current
		e.refs++
		if ordinary {
			s.ordinary++
		}
		s.mu.Unlock()
		t.dispose(idle)
		return &lease{entry: e, table: t, slot: s, ordinary: ordinary}, true, true
	}
}

func (t *table) slot(name string) *slot {
	t.mu.RLock()
	s := t.slots[name]
	t.mu.RUnlock()
	if s != nil {
		return s
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if s = t.slots[name]; s == nil {
		s = &slot{}
		t.slots[name] = s
	}
	return s
}

// renewLocked makes sure that s.current is of the version c. It returns the former entry if that is to be disposed of now.
func (t *table) renewLocked(s *slot, c *cluster.Cluster) *entry {
	if s.current != nil && s.current.cluster.Fingerprint() == c.Fingerprint() {
		return nil
	}
	idle := s.retireLocked()
	e := &entry{cluster: c, err: c.Err()}
	if e.err == nil {
		if e.transports, e.err = t.build(c); e.err == nil {
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
	}
	t.mu.Unlock()
	if s == nil {
		return
	}
	s.mu.Lock()
	var close *entry
	switch {
	case c == nil:
		s.gone = true
		close = s.current
		s.current = nil
		if close != nil {
			close.retired = true
		}
	case s.current != nil && s.current.cluster.Fingerprint() != c.Fingerprint():
		close = s.retireLocked()
	}
	s.mu.Unlock()
	t.dispose(close)
	if c == nil {
		t.metrics.forget(name)
	}
}

// release gives the entry back.
func (l *lease) release() {
	l.slot.mu.Lock()
	l.refs--
	if l.ordinary {
		l.slot.ordinary--
	}
	var idle *entry
	if l.refs == 0 && l.retired {
		idle = l.entry
	}
	l.slot.mu.Unlock()
	l.table.dispose(idle)
}

// dispose closes the transports of an entry; nil is nothing to do. Closing is done without any lock held.
func (t *table) dispose(e *entry) {
	if e == nil || e.transports == nil {
		return
	}
	e.disposeOnce.Do(func() {
		t.metrics.transports.Dec()
		if err := e.transports.close(); err != nil {
			t.logger.Info("Closing the connections to a cluster failed", "cluster", e.cluster.Name, "err", err)
		}
	})
}

// closeAll closes everything, in flight or not.
func (t *table) closeAll() {
	t.mu.RLock()
	names := make([]string, 0, len(t.slots))
	for name := range t.slots {
		names = append(names, name)
	}
	t.mu.RUnlock()
	for _, name := range names {
		t.changed(name, nil)
	}
}
