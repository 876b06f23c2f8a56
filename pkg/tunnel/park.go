// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"context"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"sigs.k8s.io/apiserver-network-proxy/proto/agent"
	"sigs.k8s.io/apiserver-network-proxy/proto/header"

	"github.com/oam-dev/cluster-gateway/pkg/dialer"
)

// A stock agent opens one stream after the other, to as many servers as the header of its last
// stream reported, and waits for that header without a timeout. So a stream is parked by sending no
// header, and activated by sending it.
const (
	// wantedStreams is the number of servers that each header reports. The server cannot know how
	// many streams the agent has to other replicas. This is more than there ever are, so the agent
	// always has one more to open.
	wantedStreams = 1000

	// maxParked bounds the parked streams of one agent. A stock agent has one. More are those that
	// have broken and have not been noticed yet, and those of agents that claim the same ID.
	maxParked = 4

	// duplicateTimeout is how long an agent may take to close a stream that was freed.
	duplicateTimeout = 5 * time.Second
)

// activateNeeded activates parked streams of the agent that are needed at once: its stream for
// requests, those for which dials are waiting, and with several replicas one that is kept for
// upgrades, because the agent may park its next stream at another replica. s.mu is locked.
func (s *Server) activateNeeded(c *clusterAgents, a *agentState) {
	for len(a.parked) > 0 && !s.closed {
		switch {
		case c.count(a, dialer.ForRequests) == 0:
			s.activate(c, a, dialer.ForRequests)
		case len(c.waiters) > 0 && !s.full(c):
			s.serveWaiters(c, s.activate(c, a, dialer.ForUpgrades))
		case s.cfg.ServerCount > 1 && !s.full(c) && !c.hasIdle(a):
			s.activate(c, a, dialer.ForUpgrades)
		default:
			return
		}
	}
}

// hasIdle reports whether the agent has an unused stream for upgrades.
func (c *clusterAgents) hasIdle(a *agentState) bool {
	return slices.ContainsFunc(c.sessions, func(se *session) bool {
		return se.agent == a && se.purpose == dialer.ForUpgrades && se.isIdle()
	})
}

// full reports whether the cluster has as many streams for upgrades as it may have.
func (s *Server) full(c *clusterAgents) bool { return c.upgrades() >= s.cfg.maxUpgrades }

func (c *clusterAgents) upgrades() (n int) {
	for _, se := range c.sessions {
		if se.purpose == dialer.ForUpgrades {
			n++
		}
	}
	return n
}

// activate takes the agent's newest parked stream into use. If an agent has several, the older ones
// may be broken. s.mu is locked, and there is a parked stream.
func (s *Server) activate(c *clusterAgents, a *agentState, purpose dialer.Purpose) *session {
	last := len(a.parked) - 1
	se := a.parked[last]
	a.parked = a.parked[:last]
	if purpose == dialer.ForUpgrades {
		// The last stream that the cluster may have never belongs to one connection alone: all
		// further ones need a place.
		se.crowded = c.upgrades() == s.cfg.maxUpgrades-1
	}
	se.purpose, se.draining = purpose, a.draining
	se.logger = se.logger.WithValues("purpose", purpose.String())
	a.answered = time.Now()
	c.sessions = append(c.sessions, se)
	close(se.activated)
	return se
}

// awaitActivation returns when the stream is needed. Otherwise it returns the error with which the
// stream ends.
func (s *Server) awaitActivation(se *session, stream agent.AgentService_ConnectServer) error {
	leaving := s.leaving
	if s.isLeaving() {
		// The agent has looked for another replica, and has come back. If it were freed at once, all
		// agents would connect once per second until this replica has stopped.
		leaving = nil
	}
	timer := time.NewTimer(s.parkedFor(se.agent))
	defer timer.Stop()
	for {
		select {
		case <-se.activated:
			return nil
		case <-se.done:
			return status.Error(codes.Unavailable, se.ended.Error())
		case <-stream.Context().Done():
			return context.Cause(stream.Context())
		case <-leaving:
			s.restartSearch(se.agent)
		case <-timer.C:
			if !s.isLeaving() && s.settled(se) {
				timer.Reset(spread(s.cfg.parkedLong))
				continue
			}
		}
		if duplicate, freed := s.free(se); freed {
			return endAsDuplicate(stream, s.header(duplicate))
		}
	}
}

// parkedFor returns how long the agent's next stream stays parked. While it is, the agent looks for
// no other replica.
func (s *Server) parkedFor(a *agentState) time.Duration {
	s.mu.RLock()
	defer s.mu.RUnlock()
	// The first ones are short, so that an agent soon finds other replicas.
	longer := s.cfg.parkedShort << min(a.freed, 20)
	switch {
	case s.isLeaving():
		return spread(min(longer, s.cfg.parkedLong))
	case s.cfg.Missing != nil:
		return spread(min(longer, s.cfg.parkedSearch))
	case s.cfg.ServerCount == 1:
		return s.cfg.parkedAlone
	default:
		return min(longer, s.cfg.parkedLong)
	}
}

// spread returns a duration of d to 1.25 d, so that the agents that a lost replica had do not look
// for another one at the same time.
func spread(d time.Duration) time.Duration { return d + rand.N(d/4+1) }

// Leave lets all agents look for another replica at once, because this one will stop soon. Their
// streams work on until then. It does not block, and can be called more than once.
func (s *Server) Leave() { s.leave() }

func (s *Server) isLeaving() bool {
	select {
	case <-s.leaving:
		return true
	default:
		return false
	}
}

// restartSearch makes the agent's next streams as short as its first ones.
func (s *Server) restartSearch(a *agentState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a.freed = 0
}

// settled reports whether the agent of a parked stream has to look for no other replica.
func (s *Server) settled(se *session) bool {
	if s.cfg.Missing == nil || s.cfg.Missing(se.peer.cluster) {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	se.agent.freed = 0 // should a replica be missing later, it is found soon
	return true
}

// free takes a parked stream out of the table, so that its agent can look for other replicas. It
// returns the ID of a stream that the agent already has. freed is false if the stream has been
// activated meanwhile.
func (s *Server) free(se *session) (duplicate string, freed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := se.agent
	i := slices.Index(a.parked, se)
	if i < 0 {
		return "", false
	}
	a.parked = slices.Delete(a.parked, i, i+1)
	a.freed++
	a.answered = time.Now()
	for _, other := range s.clusters[se.peer.cluster].sessions {
		if other.agent == a {
			duplicate = other.serverID
		}
	}
	return duplicate, true // an agent with a parked stream has one in use: see activateNeeded
}

// endAsDuplicate makes the agent close the stream. It takes the header for that of a server that it
// has already found, and tries again one sync interval later, without an error in its log.
func endAsDuplicate(stream agent.AgentService_ConnectServer, md metadata.MD) error {
	if err := stream.SendHeader(md); err != nil {
		return err
	}
	timer := time.NewTimer(duplicateTimeout)
	defer timer.Stop()
	select {
	case <-stream.Context().Done():
		return context.Cause(stream.Context())
	case <-timer.C:
		// The agent has lost the other stream, and this side has not noticed it yet.
		return status.Error(codes.Unavailable, "the gateway does not need this stream; connect again")
	}
}

// header presents a stream as a server of its own.
func (s *Server) header(serverID string) metadata.MD {
	return metadata.Pairs(header.ServerID, serverID, header.ServerCount, strconv.Itoa(wantedStreams))
}

// retireIdle ends streams for upgrades that have not been used for a while. One of each agent is
// kept longer. With several replicas it is kept for good.
func (s *Server) retireIdle(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.clusters {
		kept := map[*agentState]bool{}
		for _, se := range slices.Backward(c.sessions) {
			if se.purpose != dialer.ForUpgrades {
				continue
			}
			after := s.cfg.spareFor
			if !kept[se.agent] {
				after = s.cfg.warmFor
			}
			if se.retire(now, after, s.cfg.ServerCount > 1 && !kept[se.agent]) {
				kept[se.agent] = true
			}
		}
	}
}
