// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/oam-dev/cluster-gateway/pkg/dialer"
)

// clusterAgents has the agents of one cluster. It stays when the last of them has gone, for
// lastSeen. Server.mu guards it.
type clusterAgents struct {
	agents map[string]*agentState // by the ID that the agent claims
	// sessions are the streams in use, of all agents.
	sessions []*session
	// waiters are dials that wait for a stream of their own, the first one first. Each channel has
	// room for one session, on which a place is reserved.
	waiters  []chan *session
	next     int // rotates among streams that are equally good
	lastSeen time.Time
}

// agentState is one agent of a cluster, as long as it has a stream.
type agentState struct {
	id    string // as the agent claims it, quoted
	since time.Time
	// received and sent count the bytes of connections, of all streams.
	received, sent atomic.Int64
	// parked are the streams that the agent has opened and that have not been answered, the newest
	// last. They are in no other list.
	parked []*session
	// answered is when the last stream of the agent was answered. A stock agent opens the next one
	// one sync interval later. It is zero if no stream has been parked yet.
	answered time.Time
	freed    int  // how many parked streams have been freed since the agent connected
	draining bool // for the streams that are still parked
	record   record
	silence  silence
	failing  bool // what was last reported to the subscribers of OnFailingAgent
}

// admit creates a session and adds it to the table. Unless the stream is needed at once, it is
// parked: see park.go.
func (s *Server) admit(peer *peerIdentity, agentID string, stream packetStream) (*session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errors.New("the gateway is shutting down")
	}
	c := s.clusters[peer.cluster]
	if c == nil {
		c = &clusterAgents{agents: map[string]*agentState{}}
		s.clusters[peer.cluster] = c
	}
	a := c.agents[agentID]
	if err := s.admissible(peer.cluster, c, a); err != nil {
		s.refuse(peer.cluster, err.Error())
		return nil, err
	}
	if a == nil {
		a = &agentState{id: agentID, since: time.Now()}
		c.agents[agentID] = a
	}
	s.streamCount++
	se := newSession(&s.cfg, peer, agentID, dialer.ForRequests, stream, s.cfg.Logger.WithValues("cluster", peer.cluster, "agent", agentID))
	se.agent, se.serverID, se.activated = a, s.cfg.ServerID+"/"+strconv.FormatInt(s.streamCount, 10), make(chan struct{})
	se.onDrain = func() { s.drain(se) }
	se.onIdle = func() { s.offer(se) }
	s.running.Add(2)
	a.parked = append(a.parked, se)
	s.activateNeeded(c, a)
	return se, nil
}

// admissible returns why another stream of an agent is refused. a is nil if it is its first.
func (s *Server) admissible(cluster string, c *clusterAgents, a *agentState) error {
	switch {
	case a == nil && len(c.agents) >= s.cfg.MaxAgents:
		return fmt.Errorf("cluster %q already has %d agents at this replica of the gateway, which is the limit: run fewer agents, or raise --tunnel-max-agents of the gateway", cluster, len(c.agents))
	case a != nil && len(a.parked) >= maxParked:
		return fmt.Errorf("agent %s of cluster %q already has %d streams that the gateway does not need yet", a.id, cluster, len(a.parked))
	}
	return nil
}

// remove ends a session and removes it from the table.
func (s *Server) remove(se *session) {
	se.end(errAgentGone)
	failing := false // it has gone, and was reported as failing
	s.mu.Lock()
	c, a := s.clusters[se.peer.cluster], se.agent
	if i := slices.Index(a.parked, se); i >= 0 {
		a.parked = slices.Delete(a.parked, i, i+1)
	}
	if i := slices.Index(c.sessions, se); i >= 0 {
		c.sessions = slices.Delete(c.sessions, i, i+1)
		c.lastSeen = time.Now()
	}
	if len(a.parked) == 0 && !slices.ContainsFunc(c.sessions, func(other *session) bool { return other.agent == a }) {
		delete(c.agents, a.id)
		failing = a.failing
	}
	s.activateNeeded(c, a)
	s.mu.Unlock()
	if failing {
		s.reportFailingAgent(se.peer.cluster, a.name(), false)
	}
	s.reportAgents(se.peer.cluster)
}

// count returns how many streams in use the agent has for the purpose.
func (c *clusterAgents) count(a *agentState, purpose dialer.Purpose) (n int) {
	for _, se := range c.sessions {
		if se.agent == a && se.purpose == purpose {
			n++
		}
	}
	return n
}

// connected returns the number of distinct agents with a stream in use.
func (c *clusterAgents) connected() int {
	agents := map[*agentState]struct{}{}
	for _, se := range c.sessions {
		agents[se.agent] = struct{}{}
	}
	return len(agents)
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
	return c.connected(), c.lastSeen
}

// Answers reports whether an agent of the cluster is connected of which it is not known that it
// does not answer.
func (s *Server) Answers(cluster string) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	c := s.clusters[cluster]
	if c == nil {
		return false
	}
	now := time.Now()
	return slices.ContainsFunc(c.sessions, func(se *session) bool { return !se.agent.silence.lasts(now) })
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

// Certificates returns the certificate of each agent that is connected. The caller must not change
// them.
func (s *Server) Certificates() []*x509.Certificate {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var all []*x509.Certificate
	for _, c := range s.clusters {
		seen := map[*agentState]bool{}
		for _, se := range c.sessions {
			if !seen[se.agent] {
				seen[se.agent] = true
				all = append(all, se.peer.certificates[0])
			}
		}
	}
	return all
}
