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

// OnUpgrade subscribes f to upgraded connections that are established. own reports whether the
// connection has a stream to itself. f must not block, and can be called concurrently. OnUpgrade
// must not be called after Serve.
func (s *Server) OnUpgrade(f func(cluster string, own bool)) { s.onUpgrade = append(s.onUpgrade, f) }

// OnFailingAgent subscribes f to agents whose connections begin to fail, or no longer do, while
// another agent of their cluster works. agent is the ID that the agent claims, made printable. f
// must not block, and can be called concurrently. OnFailingAgent must not be called after Serve.
func (s *Server) OnFailingAgent(f func(cluster, agent string, failing bool)) {
	s.onFailing = append(s.onFailing, f)
}

func (s *Server) reportUpgrade(cluster string, own bool) {
	for _, f := range s.onUpgrade {
		f(cluster, own)
	}
}

// Streams are the streams of one cluster's agents: those in use for requests and for upgrades, and
// those that are parked, which means that they wait for the next upgrade.
type Streams struct{ Requests, Upgrades, Parked int }

// OnStreamsChange subscribes f to the number of streams of each cluster. f is called each time that
// it changes, without overlap, and must not block. OnStreamsChange must not be called after Serve.
func (s *Server) OnStreamsChange(f func(cluster string, streams Streams)) {
	s.onStreamsChange = append(s.onStreamsChange, f)
}

// Streams returns the streams of one cluster's agents.
func (s *Server) Streams(cluster string) (n Streams) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	c := s.clusters[cluster]
	if c == nil {
		return n
	}
	n.Upgrades = c.upgrades()
	n.Requests = len(c.sessions) - n.Upgrades
	for _, a := range c.agents {
		n.Parked += len(a.parked)
	}
	return n
}

// reportStreams calls the subscribers of OnStreamsChange. It counts while it holds reporting.
func (s *Server) reportStreams(cluster string) {
	s.reporting.Lock()
	defer s.reporting.Unlock()
	n := s.Streams(cluster)
	if n == s.reportedStreams[cluster] {
		return
	}
	s.reportedStreams[cluster] = n
	for _, f := range s.onStreamsChange {
		f(cluster, n)
	}
}

// reportAgents calls the subscribers of OnAgentsChange. It counts while it holds reporting, so the
// last call always reports the last state.
func (s *Server) reportAgents(cluster string) {
	s.reportStreams(cluster)
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
