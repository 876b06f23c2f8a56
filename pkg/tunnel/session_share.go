// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"time"

	"github.com/oam-dev/cluster-gateway/pkg/dialer"
)

// reserve keeps a place for a dial, so that the session is not retired meanwhile. It returns false
// if the session has ended. The caller calls release after the dial.
func (s *session) reserve() bool {
	s.mu.Lock()
	if s.ended != nil {
		s.mu.Unlock()
		return false
	}
	s.reserved++
	s.mu.Unlock()
	select {
	case s.joined <- struct{}{}:
	default:
	}
	return true
}

// release gives up a reserved place. The dial has its connection by then, or has failed.
func (s *session) release() {
	s.mu.Lock()
	s.reserved--
	idle := s.idleLocked()
	if idle {
		s.idleSince = time.Now()
	}
	s.mu.Unlock()
	if idle {
		s.onIdle()
	}
}

// isIdle reports whether the session could begin anew with another connection. If the agent has not
// confirmed that the last connection is closed, its stream may be blocked.
func (s *session) isIdle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.idleLocked()
}

func (s *session) idleLocked() bool {
	return s.ended == nil && len(s.conns)+len(s.dials)+s.reserved == 0
}

// isAlone reports whether the stream belongs to at most one connection. If that connection does not
// move, nobody else is delayed. So its bytes are not read while its client lags, and the agent
// stops to read from the API server.
func (s *session) isAlone() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.aloneLocked()
}

func (s *session) aloneLocked() bool {
	return s.purpose == dialer.ForUpgrades && !s.crowded && s.openLocked() <= 1
}

// carriesOne reports whether the stream belongs to one connection that is open.
func (s *session) carriesOne() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.aloneLocked() && s.openLocked() == 1
}

// awaitReader waits until the client of the stream's only connection has read enough. It returns
// early when the stream is shared: then nothing may wait.
func (s *session) awaitReader(resume <-chan struct{}) {
	defer func() { s.laggedAt.Store(time.Now().UnixNano()) }()
	s.laggedAt.Store(time.Now().UnixNano())
	for s.isAlone() {
		select {
		case <-resume:
			return
		case <-s.joined:
		case <-s.done:
			return
		}
	}
}

// lags reports whether a client has lagged recently.
func (s *session) lags(now time.Time) bool {
	at := s.laggedAt.Load()
	return at != 0 && now.Sub(time.Unix(0, at)) < lagsFor
}

// retire ends the session if it has not been used for some time, unless keep. It reports whether
// the session is unused and stays.
func (s *session) retire(now time.Time, after time.Duration, keep bool) (kept bool) {
	s.mu.Lock()
	if !s.idleLocked() {
		s.mu.Unlock()
		return false
	}
	if keep || now.Sub(s.idleSince) < after {
		s.mu.Unlock()
		return true
	}
	s.mu.Unlock()
	// No dial can choose it meanwhile: the caller holds the server's lock.
	s.end(errUnused)
	return false
}
