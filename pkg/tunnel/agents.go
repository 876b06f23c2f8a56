// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/oam-dev/cluster-gateway/pkg/dialer"
)

// clusterAgents has the sessions of one cluster's agents. It stays when the last of them has ended,
// for lastSeen.
type clusterAgents struct {
	sessions []*session
	next     int // rotates among sessions that are equally good
	// nextPurpose is the last purpose that purposeFor gave out in turn.
	nextPurpose dialer.Purpose
	lastSeen    time.Time
}

// admit creates a session and adds it to the table.
func (s *Server) admit(peer *peerIdentity, agentID string, stream packetStream) (*session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errors.New("the gateway is shutting down")
	}
	c := s.clusters[peer.cluster]
	if c == nil {
		c = &clusterAgents{}
		s.clusters[peer.cluster] = c
	}
	if len(c.sessions) >= s.cfg.MaxStreams {
		err := fmt.Errorf("cluster %q already has %d streams of %d agents at this replica of the gateway, which is the limit",
			peer.cluster, len(c.sessions), c.agents())
		s.refuse(peer.cluster, err.Error())
		return nil, err
	}
	purpose := c.purposeFor(agentID)
	se := newSession(&s.cfg, peer, agentID, purpose, stream,
		s.cfg.Logger.WithValues("cluster", peer.cluster, "agent", agentID, "purpose", purpose.String()))
	se.onDrain = func() { s.drain(se) }
	c.sessions = append(c.sessions, se)
	s.running.Add(2)
	return se, nil
}

// purposeFor returns the purpose for which the agent has the fewest streams, the first one if
// equal.
//
// An agent may already have a stream for each purpose, because one that has broken has not been
// noticed yet. If it then gets another stream for the wrong purpose, it drops the stream and tries
// again. So the purposes are given out in turn in that case.
func (c *clusterAgents) purposeFor(agentID string) dialer.Purpose {
	var have [dialer.Purposes]int
	for _, se := range c.sessions {
		if se.agentID == agentID {
			have[se.purpose]++
		}
	}
	var best dialer.Purpose
	if !slices.Contains(have[:], 0) {
		c.nextPurpose = (c.nextPurpose + 1) % dialer.Purposes
		best = c.nextPurpose
	}
	for purpose := range dialer.Purposes {
		if have[purpose] < have[best] {
			best = purpose
		}
	}
	return best
}

// remove ends a session and removes it from the table.
func (s *Server) remove(se *session) {
	se.end(errAgentGone)
	s.mu.Lock()
	c := s.clusters[se.peer.cluster]
	if i := slices.Index(c.sessions, se); i >= 0 {
		c.sessions = slices.Delete(c.sessions, i, i+1)
		c.lastSeen = time.Now()
	}
	s.mu.Unlock()
	s.reportAgents(se.peer.cluster)
}

// agents returns the number of distinct agents. Each has a stream for every purpose.
func (c *clusterAgents) agents() int {
	ids := map[string]struct{}{}
	for _, se := range c.sessions {
		ids[se.agentID] = struct{}{}
	}
	return len(ids)
}

// Agents returns how many agents of the cluster are connected, and when the last stream of one of
// them ended. The time is zero if none has ended.
func (s *Server) Agents(cluster string) (connected int, lastSeen time.Time) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	c := s.clusters[cluster]
	if c == nil {
		return 0, time.Time{}
	}
	return c.agents(), c.lastSeen
}

// AgentCertificate returns the certificate that expires first among those of the cluster's
// connected agents. It returns nil if none is connected. The caller must not change it.
func (s *Server) AgentCertificate(cluster string) *x509.Certificate {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var first *x509.Certificate
	if c := s.clusters[cluster]; c != nil {
		for _, se := range c.sessions {
			if cert := se.peer.certificates[0]; first == nil || cert.NotAfter.Before(first.NotAfter) {
				first = cert
			}
		}
	}
	return first
}
