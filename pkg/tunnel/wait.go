// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"context"
	"slices"
	"time"

	"github.com/oam-dev/cluster-gateway/pkg/dialer"
)

// maxSeparate is how many waiting dials get a stream of their own, one after the other. If more are
// waiting when a stream arrives, all of them share it: an agent opens only one stream per second.
const maxSeparate = 2

// expects reports whether a stream for upgrades may arrive soon: an agent opens one a sync interval
// after its last one was answered. s.mu is locked.
func (s *Server) expects(c *clusterAgents, now time.Time, skip func(*agentState) bool) bool {
	if s.full(c) {
		return false
	}
	for _, a := range c.agents {
		if !skip(a) && !a.draining && !a.record.suspect(now) && now.Sub(a.answered) < s.cfg.ownStreamTimeout {
			return true
		}
	}
	return false
}

// addWaiter registers a dial that waits for a stream of its own. s.mu is locked.
func (c *clusterAgents) addWaiter() chan *session {
	w := make(chan *session, 1)
	c.waiters = append(c.waiters, w)
	return w
}

// awaitStream returns a session on which a place is reserved, or nil if none has arrived in time.
func (s *Server) awaitStream(ctx context.Context, c *clusterAgents, w chan *session, limit time.Time) *session {
	timer := time.NewTimer(time.Until(limit))
	defer timer.Stop()
	select {
	case se := <-w:
		return se
	case <-ctx.Done():
	case <-timer.C:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c.waiters = slices.DeleteFunc(c.waiters, func(other chan *session) bool { return other == w })
	select {
	case se := <-w: // it has just arrived
		return se
	default:
		return nil
	}
}

// serveWaiters gives an unused stream to those who wait. s.mu is locked.
func (s *Server) serveWaiters(c *clusterAgents, se *session) {
	n := len(c.waiters)
	if n <= maxSeparate {
		n = min(n, 1)
	}
	for range n {
		if !se.reserve() {
			return // it has ended; they go on waiting
		}
		c.waiters[0] <- se
		c.waiters = c.waiters[1:]
	}
}

// offer gives a stream for upgrades that is unused again to those who wait.
func (s *Server) offer(se *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.clusters[se.peer.cluster]
	if se.purpose == dialer.ForUpgrades && len(c.waiters) > 0 && se.isIdle() && !se.isDraining() && !se.agent.record.suspect(time.Now()) {
		s.serveWaiters(c, se)
	}
}
