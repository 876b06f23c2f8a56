// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"errors"
	"sync"

	"k8s.io/klog/v2"

	"github.com/oam-dev/cluster-gateway/pkg/cluster"
)

// ClusterGetter returns what is known about a cluster at this moment, from memory.
type ClusterGetter interface {
	Get(name string) (*cluster.Cluster, bool)
}

// errNoCluster reports a cluster that is not registered.
var errNoCluster = errors.New("there is no such cluster")

// table holds the transports of each cluster that has been requested: a slot for each cluster,
// which holds an entry for each version of it.
type table struct {
	clusters ClusterGetter
	build    func(*cluster.Cluster, *clusterMetrics, dialGate) (*transports, error)
	// dials has the places for dials to all clusters; see dialGate.
	dials   chan struct{}
	limits  limits
	metrics *Metrics
	logger  klog.Logger

	// A slot's lock may be taken while mu is held, but not the other way round.
	mu     sync.RWMutex
	slots  map[string]*slot
	closed bool
}

// acquire returns a lease of a cluster's current entry for a caller, who is empty for the gateway
// itself. It fails with errNoCluster, errShuttingDown, or a *limitError if the cluster or the
// caller has too many requests of the class.
func (t *table) acquire(name, caller string, as class) (lease, error) {
	for {
		if _, known := t.clusters.Get(name); !known {
			return lease{}, errNoCluster
		}
		s := t.slot(name)
		if s == nil {
			return lease{}, errShuttingDown
		}
		s.mu.Lock()
		if s.gone {
			s.mu.Unlock()
			continue
		}
		// Look again, under the lock: the cluster may have changed since.
		c, known := t.clusters.Get(name)
		if !known {
			s.mu.Unlock()
			t.dropUnused(name, s)
			return lease{}, errNoCluster
		}
		if limited, limit, exceeded := t.limits.exceeded(s.inFlight, as); exceeded {
			s.mu.Unlock()
			return lease{}, &limitError{cluster: c, class: limited, limit: limit, metrics: s.metrics}
		}
		if limited, had, exceeded := t.limits.exceedsShare(s.inFlight, s.callers[caller], as); exceeded && caller != "" {
			s.mu.Unlock()
			return lease{}, &limitError{cluster: c, class: limited, limit: had, caller: true, metrics: s.metrics}
		}
		idle := t.updateLocked(s, c)
		e := s.current
		e.refs++
		l := lease{entry: e, table: t, slot: s, class: as, caller: caller}
		l.countLocked(1)
		s.mu.Unlock()
		t.dispose(idle)
		return l, nil
	}
}

// slot returns the slot of a cluster, or nil when the table is closed.
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
		s = &slot{metrics: &clusterMetrics{metrics: t.metrics, cluster: name}, gate: newDialGate(t.dials)}
		t.slots[name] = s
	}
	return s
}

// dropUnused removes a slot that was made for a cluster which was deleted before it had an entry.
// Its deletion has already been reported, so nothing else would remove the slot.
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

// updateLocked makes sure that s.current is of the version c. It returns the previous entry if that
// has to be disposed of now. It is called with s.mu held.
func (t *table) updateLocked(s *slot, c *cluster.Cluster) *entry {
	if s.current != nil && s.current.cluster.Fingerprint() == c.Fingerprint() {
		return nil
	}
	idle := s.retireLocked()
	e := newEntry(c)
	if e.err == nil {
		if e.transports, e.err = t.build(c, s.metrics, s.gate); e.err == nil {
			t.metrics.transports.Inc()
		}
	}
	s.current = e
	return idle
}

// changed follows the Secret; c is nil when it was deleted. An entry that is no longer current is
// retired. The transports of a deleted cluster are closed at once, together with its requests in
// flight.
func (t *table) changed(name string, c *cluster.Cluster) {
	t.mu.Lock()
	s := t.slots[name]
	if s != nil && c == nil {
		delete(t.slots, name)
		// Done before another cluster of the same name can have metrics of its own. It looks at the
		// series of all clusters, so it is not done for each cluster when the process ends.
		if !t.closed {
			s.metrics.delete()
		}
	}
	t.mu.Unlock()
	if s == nil {
		return
	}
	s.mu.Lock()
	var unused []*entry
	switch {
	case c == nil:
		s.gone = true
		if idle := s.retireLocked(); idle != nil {
			unused = append(unused, idle)
		}
		for e := range s.draining {
			unused = append(unused, e)
		}
	case s.current != nil && s.current.cluster.Fingerprint() != c.Fingerprint():
		unused = append(unused, s.retireLocked())
	}
	s.mu.Unlock()
	for _, e := range unused {
		t.dispose(e)
	}
}

// reconnect retires a cluster's current entry, so that requests from now on use new connections,
// and notifies the requests in flight that their connection is about to be closed.
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
		e.announceClosing()
	}
	s.mu.Unlock()
	t.dispose(idle)
}

// dispose closes the transports of an entry. It does nothing if e is nil. No lock may be held,
// because closing takes time.
func (t *table) dispose(e *entry) {
	if e == nil || e.transports == nil {
		return
	}
	e.announceClosing()
	e.disposeOnce.Do(func() {
		t.metrics.transports.Dec()
		if err := e.transports.close(); err != nil {
			t.logger.Info("Failed to close the connections to a cluster", "cluster", e.cluster.Name, "err", err)
		}
	})
}

// closeAll closes the table for good, and everything in it, whether in flight or not.
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
