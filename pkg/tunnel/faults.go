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
// has expired or is not accepted any more. A new handshake would refuse such a certificate, but the
// last one may be months ago.
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
		if err := s.accept(se.peer); err != nil {
			se.end(fmt.Errorf("%w: %w", errAgentGone, err))
		}
		if end := se.peer.certificates[0].NotAfter; now.After(end.Add(expiryGrace)) {
			se.end(fmt.Errorf("%w: its certificate expired at %s", errAgentGone, end.UTC().Format(time.RFC3339)))
		}
	}
}

// accept returns why the peer's certificate is not accepted. Invitations are checked elsewhere.
func (s *Server) accept(peer *peerIdentity) error {
	if s.cfg.Accept == nil || peer.invited {
		return nil
	}
	if err := s.cfg.Accept(peer.cluster, peer.certificates[0]); err != nil {
		return fmt.Errorf("the agent's certificate is not accepted: %w", err)
	}
	return nil
}

// Recheck ends the streams of a cluster's agents whose certificates Config.Accept does not accept
// any more.
func (s *Server) Recheck(cluster string) {
	s.mu.RLock()
	all := s.sessionsOfLocked(cluster)
	s.mu.RUnlock()
	for _, se := range all {
		if err := s.accept(se.peer); err != nil {
			se.end(fmt.Errorf("%w: %w", errAgentGone, err))
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
