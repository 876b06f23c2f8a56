// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/oam-dev/cluster-gateway/pkg/dialer"
)

// ClusterState is what a Server knows about the agents of one cluster. Names of agents and texts of
// errors come from outside. Names are made printable, and errors are shortened.
type ClusterState struct {
	Cluster string       `json:"cluster"`
	Agents  []AgentState `json:"agents"`
	// LastSeen is when a stream of an agent last ended. It is zero if none has ended.
	LastSeen time.Time `json:"lastSeen,omitzero"`
	// Refused is why an agent was refused recently although its certificate is accepted.
	Refused string `json:"refused,omitempty"`
}

// AgentState is one connected agent.
type AgentState struct {
	Name string `json:"name"`
	// Since is when it connected.
	Since time.Time `json:"since"`
	// CertificateExpires is when the first of the certificates with which it is connected expires.
	CertificateExpires time.Time    `json:"certificateExpires,omitzero"`
	Streams            StreamCounts `json:"streams"`
	// Connections are those to the API server that are open.
	Connections int `json:"connections"`
	// BytesReceived and BytesSent are those of connections to the API server, since it connected.
	BytesReceived int64 `json:"bytesReceived"`
	BytesSent     int64 `json:"bytesSent"`
	// Draining means that the agent is about to end. Failing means that its connections keep failing
	// while another agent works.
	Draining bool `json:"draining,omitempty"`
	Failing  bool `json:"failing,omitempty"`
	// LastError is the last failure of a dial or of a connection, which may be over.
	LastError   string    `json:"lastError,omitempty"`
	LastErrorAt time.Time `json:"lastErrorAt,omitzero"`
}

// StreamCounts counts the streams of one agent, as [Streams] does.
type StreamCounts struct {
	Requests int `json:"requests"`
	Upgrades int `json:"upgrades"`
	Parked   int `json:"parked"`
}

// Snapshot returns the state of all clusters that have an agent, or had one since the start, in the
// order of their names.
func (s *Server) Snapshot() []ClusterState {
	now := time.Now()
	all := []ClusterState{}
	s.mu.RLock()
	for name, c := range s.clusters {
		state := ClusterState{Cluster: name, Agents: []AgentState{}, LastSeen: c.lastSeen}
		failing := c.failing(now)
		for _, a := range c.agents {
			agent := c.stateOf(a)
			agent.Failing = failing[a] != nil
			state.Agents = append(state.Agents, agent)
		}
		slices.SortFunc(state.Agents, func(a, b AgentState) int { return cmp.Compare(a.Name, b.Name) })
		all = append(all, state)
	}
	s.mu.RUnlock()
	for i, state := range all {
		if err := s.RecentRefusal(state.Cluster); err != nil {
			all[i].Refused = err.Error()
		}
	}
	slices.SortFunc(all, func(a, b ClusterState) int { return cmp.Compare(a.Cluster, b.Cluster) })
	return all
}

// stateOf returns the state of an agent. Server.mu is held.
func (c *clusterAgents) stateOf(a *agentState) AgentState {
	state := AgentState{
		Name: a.name(), Since: a.since, BytesReceived: a.received.Load(), BytesSent: a.sent.Load(), Draining: a.draining,
		Streams: StreamCounts{Upgrades: c.count(a, dialer.ForUpgrades), Requests: c.count(a, dialer.ForRequests), Parked: len(a.parked)},
	}
	if at, err := a.record.lastFailure(); err != nil {
		state.LastError, state.LastErrorAt = fmt.Sprintf("%.300v", err), at
	}
	add := func(se *session) {
		if expires := se.peer.certificates[0].NotAfter; state.CertificateExpires.IsZero() || expires.Before(state.CertificateExpires) {
			state.CertificateExpires = expires
		}
		connections, draining := se.usage()
		state.Connections += connections
		state.Draining = state.Draining || draining
	}
	for _, se := range c.sessions {
		if se.agent == a {
			add(se)
		}
	}
	for _, se := range a.parked {
		add(se)
	}
	return state
}

// usage returns how many connections are open, and whether the agent drains.
func (s *session) usage() (connections int, draining bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns) - s.closing, s.draining
}
