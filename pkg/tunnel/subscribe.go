// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

// OnAgentsChange subscribes f to the number of distinct agents of each cluster. f is called each
// time that the number changes. Calls never overlap. f may call the Server, and it must not block.
// OnAgentsChange must not be called after Serve.
func (s *Server) OnAgentsChange(f func(cluster string, agents int)) {
	s.onAgentsChange = append(s.onAgentsChange, f)
}

// OnAgentLeaving subscribes f to clusters that have connections through a draining agent while
// another agent can take them. When the draining agent ends, some time later, these connections are
// cut. f must not block. OnAgentLeaving must not be called after Serve.
func (s *Server) OnAgentLeaving(f func(cluster string)) {
	s.onAgentLeaving = append(s.onAgentLeaving, f)
}

// OnRefusal subscribes f to the refusals of streams and connections of a cluster's agents because
// of Config.MaxStreams. f must not block, and can be called concurrently. OnRefusal must not be
// called after Serve.
func (s *Server) OnRefusal(f func(cluster string)) { s.onRefusal = append(s.onRefusal, f) }

// reportAgents calls the subscribers of OnAgentsChange. It counts while it holds reporting, so the
// last call always reports the last state.
func (s *Server) reportAgents(cluster string) {
	if len(s.onAgentsChange) == 0 {
		return
	}
	s.reporting.Lock()
	defer s.reporting.Unlock()
	n, _ := s.Agents(cluster)
	if n == s.reported[cluster] {
		return
	}
	s.reported[cluster] = n
	for _, f := range s.onAgentsChange {
		f(cluster, n)
	}
}

// reportLeaving calls the subscribers of OnAgentLeaving, once for each cluster with connections to
// move.
func (s *Server) reportLeaving() {
	if len(s.onAgentLeaving) == 0 {
		return
	}
	s.mu.RLock()
	var leaving []string
	for name, c := range s.clusters {
		if c.takeLeaving() {
			leaving = append(leaving, name)
		}
	}
	s.mu.RUnlock()
	for _, name := range leaving {
		for _, f := range s.onAgentLeaving {
			f(name)
		}
	}
}
