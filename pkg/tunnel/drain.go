// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import "slices"

// drain marks all streams of an agent as draining when the agent has reported it on one of them.
func (s *Server) drain(reporter *session) {
	s.mu.Lock()
	reporter.agent.draining = true // for the streams that are still parked
	var streams []*session
	for _, se := range s.clusters[reporter.peer.cluster].sessions {
		if se.agent == reporter.agent {
			streams = append(streams, se)
		}
	}
	s.mu.Unlock()
	for _, se := range streams {
		se.drain()
	}
}

// takeLeaving reports whether there are connections to move from a draining agent to another one.
// It reports each of them once.
func (c *clusterAgents) takeLeaving() bool {
	others := slices.ContainsFunc(c.sessions, func(se *session) bool { return !se.isDraining() })
	if !others {
		return false
	}
	leaving := false
	for _, se := range c.sessions {
		leaving = se.takeLeaving() || leaving
	}
	return leaving
}
