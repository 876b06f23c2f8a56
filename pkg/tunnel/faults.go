// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"crypto/x509"
	"fmt"
	"time"
)

// expiryGrace is how long a stream may outlive its agent's certificate. An agent that has been
// replaced drains in this time.
const expiryGrace = 5 * time.Minute

// endFaulty ends the streams of agents that have stopped reading, and of those whose certificate
// has expired. A new handshake would refuse such a certificate, but the last one may be months ago.
func (s *Server) endFaulty(now time.Time) {
	s.mu.RLock()
	all := s.sessionsLocked()
	s.mu.RUnlock()
	for _, se := range all {
		// A connection that has a stream to itself may stand still for as long as both of its ends
		// like it. Only keepalive ends such a stream.
		if se.stalled(now, s.cfg.stallTimeout) && !se.carriesOne() {
			se.end(errStalled)
		}
		if end := se.peer.certificates[0].NotAfter; now.After(end.Add(expiryGrace)) {
			se.end(fmt.Errorf("%w: its certificate expired at %s", errAgentGone, end.UTC().Format(time.RFC3339)))
		}
	}
}

// Reverify ends the streams of agents whose certificates are not valid under opts, of which it uses
// Roots and CurrentTime (zero: now). Call it when the CA bundle has changed: the handshake of a
// stream may be months ago. A certificate that has expired since its handshake does not end its
// stream here.
func (s *Server) Reverify(opts x509.VerifyOptions) {
	s.mu.RLock()
	all := s.sessionsLocked()
	s.mu.RUnlock()
	for _, se := range all {
		if err := se.peer.verify(opts); err != nil {
			se.end(fmt.Errorf("the agent's certificate is no longer accepted: %w", err))
		}
	}
}
