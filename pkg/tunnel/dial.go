// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"cmp"
	"context"
	"errors"
	"net"
	"slices"
	"time"

	"github.com/oam-dev/cluster-gateway/pkg/dialer"
)

// busyAfter is how long an agent may take to accept a packet before new dials prefer another
// stream.
const busyAfter = time.Second

// Dialer returns a Dialer of one cluster. address, as host:port, is the cluster's registered API
// server, and the only one that it ever dials. It prefers streams for purpose. All Dialers of a
// cluster share one dialer.Budget.
//
// The connections end when Serve does.
func (s *Server) Dialer(cluster, address string, purpose dialer.Purpose) dialer.Dialer {
	return s.budgets.Dialer(cluster, func(ctx context.Context, _, requested string, budget *dialer.Budget) (net.Conn, error) {
		if requested != address {
			return nil, &dialer.Error{Cluster: cluster, Stage: dialer.StageTunnel, Address: requested, Err: dialer.ErrAddressNotAllowed}
		}
		return s.dial(ctx, cluster, address, purpose, budget)
	})
}

func (s *Server) noAgent(lastSeen time.Time) error {
	since := lastSeen
	if since.IsZero() {
		since = s.started
	}
	return &dialer.NoAgentError{LastSeen: lastSeen, Since: since}
}

// dial asks one agent after the other until one of them has connected. It asks each stream once,
// and no further stream of an agent that has answered that it cannot reach the address. An agent
// that turns out to be draining is asked again if no other agent connects.
func (s *Server) dial(ctx context.Context, cluster, address string, purpose dialer.Purpose, budget *dialer.Budget) (net.Conn, error) {
	candidates, lastSeen := s.candidates(cluster, purpose)
	if len(candidates) == 0 {
		return nil, &dialer.Error{Cluster: cluster, Stage: dialer.StageTunnel, Address: address, Err: s.noAgent(lastSeen)}
	}
	var failures []error
	answered := map[string]bool{} // agents that have answered that they cannot reach the address
	for i := 0; i < len(candidates); i++ {
		se := candidates[i]
		if answered[se.agentID] {
			continue
		}
		wasDraining := se.isDraining()
		attempt, cancel := ctx, context.CancelFunc(func() {})
		if i < len(candidates)-1 {
			attempt, cancel = context.WithTimeout(ctx, s.cfg.attemptTimeout)
		}
		conn, err := se.dial(attempt, address, budget)
		cancel()
		if err == nil && !wasDraining && se.isDraining() && slices.ContainsFunc(candidates[i+1:], func(se *session) bool { return !se.isDraining() }) {
			_ = conn.Close() // it has not been used
			candidates = append(candidates, se)
			continue
		}
		if err == nil {
			return conn, nil
		}
		failures = append(failures, err)
		answered[se.agentID] = atEndpoint(err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, latestStage(failures)
}

// atEndpoint reports whether an agent has answered that it cannot reach the API server.
func atEndpoint(err error) bool {
	var de *dialer.Error
	return errors.As(err, &de) && de.Stage == dialer.StageEndpoint
}

// latestStage returns the failure at the latest stage. If one agent cannot reach the API server and
// another one does not answer, the former helps the user more.
func latestStage(failures []error) error {
	for _, err := range failures {
		if atEndpoint(err) {
			return err
		}
	}
	return failures[len(failures)-1]
}

// candidates returns the cluster's sessions in the order in which to try them: not draining,
// answering, for the purpose, with the fewest connections, and in turn among equals.
func (s *Server) candidates(cluster string, purpose dialer.Purpose) ([]*session, time.Time) {
	s.mu.Lock()
	c := s.clusters[cluster]
	if c == nil {
		s.mu.Unlock()
		return nil, time.Time{}
	}
	c.next++
	n := len(c.sessions)
	rotated := make([]*session, 0, n)
	for i := range n {
		rotated = append(rotated, c.sessions[(c.next+i)%n])
	}
	lastSeen := c.lastSeen
	s.mu.Unlock()

	rank := make(map[*session]int, n)
	now := time.Now()
	for _, se := range rotated {
		rank[se] = se.rank(now, purpose)
	}
	slices.SortStableFunc(rotated, func(a, b *session) int { return cmp.Compare(rank[a], rank[b]) })
	return rotated, lastSeen
}

// rank is lower for a session that is a better choice for a dial.
func (s *session) rank(now time.Time, purpose dialer.Purpose) int {
	open, draining, unanswered := s.load()
	// Each fault counts more than all connections and the faults before it.
	r := open
	if s.purpose != purpose {
		r += 1 << 20
	}
	if unanswered || s.stalled(now, busyAfter) {
		r += 1 << 21
	}
	if draining {
		r += 1 << 22
	}
	return r
}
