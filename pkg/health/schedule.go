// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/oam-dev/cluster-gateway/pkg/cluster"
)

// run is the state of one call of Monitor.Run.
type run struct {
	cfg     *Config
	started time.Time // when the Monitor was created

	mu       sync.Mutex
	clusters map[string]*tracked
	queue    queue
	busy     int // running probes
	// wake receives a value when the next due time may have changed.
	wake   chan struct{}
	probes sync.WaitGroup
}

// tracked is a cluster during a run. run.mu guards it, except for the fields of the running probe.
type tracked struct {
	name  string
	due   time.Time
	index int // in the queue, or -1

	probing bool
	again   bool // something changed during the running probe
	removed bool

	fingerprint cluster.Fingerprint
	failures    int // in a row

	// The running probe owns the following fields.
	version   string
	versionAt time.Time
}

// addAll adds the clusters that exist at the start. Their first probes are spread over one
// interval, so that a new leader does not overload the clusters or the hub. It takes the lock
// before it lists the clusters, so that no later change is handled before the list.
func (r *run) addAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.cfg.Clusters.List() {
		r.changedLocked(c.Name, c, time.Duration(rand.Int64N(int64(r.cfg.Interval))))
	}
}

// changedLocked handles a new, changed or removed cluster. delay is the time to the first probe of
// a new cluster.
func (r *run) changedLocked(name string, c *cluster.Cluster, delay time.Duration) {
	k := r.clusters[name]
	switch {
	case c == nil && k == nil:
	case c == nil:
		k.removed = true
		r.queue.drop(k)
		delete(r.clusters, name)
		r.cfg.Metrics.drop(name)
	case k == nil:
		k = &tracked{name: name, index: -1, fingerprint: c.Fingerprint()}
		r.clusters[name] = k
		if c.Health.Conditions == nil {
			delay = 0 // its state is not known yet, and somebody may be waiting for it
		}
		r.queue.schedule(k, time.Now().Add(delay))
		r.signal()
	case k.fingerprint != c.Fingerprint():
		// Earlier probes say nothing about the new version of the Secret. Writing the state to the
		// Secret does not change the fingerprint.
		k.fingerprint, k.failures = c.Fingerprint(), 0
		r.probeWithinLocked(k, 0)
	}
}

func (r *run) trigger(name string, delay time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if k := r.clusters[name]; k != nil {
		r.probeWithinLocked(k, delay)
	}
}

// probeWithinLocked makes sure that a probe of the cluster starts within the delay. If one is
// running, another one follows it.
func (r *run) probeWithinLocked(k *tracked, delay time.Duration) {
	if k.probing {
		k.again = true
		return
	}
	if due := time.Now().Add(delay); due.Before(k.due) {
		r.queue.schedule(k, due)
		r.signal()
	}
}

func (r *run) signal() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// loop starts the probes when they are due, until ctx ends.
func (r *run) loop(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		timer.Reset(r.startDue(ctx))
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		case <-timer.C:
		}
	}
}

// idleWait is the time to wait when no probe is scheduled.
const idleWait = time.Hour

// startDue starts the probes that are due. It returns the time to the next one.
func (r *run) startDue(ctx context.Context) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.busy < r.cfg.Concurrency {
		k := r.queue.next()
		if k == nil {
			return idleWait
		}
		if wait := time.Until(k.due); wait > 0 {
			return wait
		}
		r.queue.drop(k)
		k.probing = true
		r.busy++
		r.probes.Go(func() {
			delay := r.probe(ctx, k)
			r.probed(k, delay)
		})
	}
	return idleWait // the end of a running probe wakes the loop
}

// probed schedules the next probe of a cluster.
func (r *run) probed(k *tracked, delay time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.busy--
	k.probing = false
	if k.again {
		k.again, delay = false, 0
	}
	if !k.removed {
		r.queue.schedule(k, time.Now().Add(delay))
	}
	r.signal()
}

// delayAfter returns the time to the next probe after a number of failures in a row. The first
// failures shorten it, because they may be temporary. Many failures make it longer.
func (r *run) delayAfter(c *cluster.Cluster, failures int) time.Duration {
	delay := r.cfg.Interval
	switch {
	case c.Err() != nil:
		delay = max(delay, idleWait) // only a change of the Secret can help
	case failures >= 1 && failures <= 3:
		delay >>= 4 - failures
	case failures > 120:
		delay *= 4
	case failures > 30:
		delay *= 2
	}
	// The jitter is 10 % in both directions.
	return delay - delay/10 + time.Duration(rand.Int64N(int64(delay/5)+1))
}
