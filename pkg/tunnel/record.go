// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// recordHalfLife is the time after which a failure counts half.
	recordHalfLife = 30 * time.Second
	// maxFailures bounds the sum of an agent's failures, and with it how long an agent that works
	// again can be avoided: about two minutes.
	maxFailures = 8
	// suspectFrom is the sum of failures from which other agents are preferred.
	suspectFrom = 0.5
	// failingFrom is the sum of failures from which an agent is reported.
	failingFrom = 1.5
)

// record is what has become of an agent's connections. An agent that accepts dials and carries
// nothing would otherwise have the least load, and get most of them. The zero value is ready for
// use. It is safe for concurrent use.
type record struct {
	mu       sync.Mutex
	failures float64 // at the time at
	at       time.Time
	last     error
	// latest is the last failure, also if the agent has worked since then, and latestAt its time.
	latest   error
	latestAt time.Time
}

// failed counts a connection, or a dial, that was of no use. weight is 1 if that is certain.
func (r *record) failed(err error, weight float64, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failures, r.at, r.last = min(r.sumLocked(now)+weight, maxFailures), now, err
	r.latest, r.latestAt = err, now
}

// succeeded forgets all failures.
func (r *record) succeeded() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failures, r.last = 0, nil
}

func (r *record) sumLocked(now time.Time) float64 {
	if r.failures == 0 {
		return 0
	}
	return r.failures * math.Exp2(-now.Sub(r.at).Seconds()/recordHalfLife.Seconds())
}

// lastFailure returns when the last failure was, and the failure. It is nil if there was none.
func (r *record) lastFailure() (at time.Time, failure error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.latestAt, r.latest
}

// suspect reports whether other agents are the better choice.
func (r *record) suspect(now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sumLocked(now) >= suspectFrom
}

// failing returns the last failure of an agent that keeps failing, and nil otherwise.
func (r *record) failing(now time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sumLocked(now) < failingFrom {
		return nil
	}
	return r.last
}

// failing returns the agents whose connections keep failing, while another agent works. If all
// fail, the cause is not an agent.
func (c *clusterAgents) failing(now time.Time) map[*agentState]error {
	failing, working := map[*agentState]error{}, false
	for _, a := range c.agents {
		if err := a.record.failing(now); err != nil {
			failing[a] = err
		} else if !a.record.suspect(now) {
			working = true
		}
	}
	if !working {
		return nil
	}
	return failing
}

// FailingAgents returns an error that names the agents of the cluster whose connections keep
// failing, while another agent of the cluster works. It returns nil if there are none.
func (s *Server) FailingAgents(cluster string) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	c := s.clusters[cluster]
	if c == nil {
		return nil
	}
	var failing []string
	for a, err := range c.failing(time.Now()) {
		failing = append(failing, fmt.Sprintf("agent %s: %.300v", a.id, err))
	}
	if len(failing) == 0 {
		return nil
	}
	slices.Sort(failing)
	return errors.New(strings.Join(failing, "; "))
}

// reportFailing reports the agents that FailingAgents has begun or ceased to name.
func (s *Server) reportFailing(now time.Time) {
	type change struct {
		cluster, agent string
		err            error
	}
	var changes []change
	s.mu.Lock()
	for name, c := range s.clusters {
		failing := c.failing(now)
		for _, a := range c.agents {
			if err := failing[a]; (err != nil) != a.failing {
				a.failing = err != nil
				changes = append(changes, change{name, a.name(), err})
			}
		}
	}
	s.mu.Unlock()
	for _, it := range changes {
		if it.err != nil {
			s.cfg.Logger.Info("Connections through an agent fail, and other agents are used", "cluster", it.cluster, "agent", it.agent, "reason", it.err.Error())
		}
		s.reportFailingAgent(it.cluster, it.agent, it.err != nil)
	}
}

func (s *Server) reportFailingAgent(cluster, agent string, failing bool) {
	for _, f := range s.onFailing {
		f(cluster, agent, failing)
	}
}

// name returns the ID that the agent claims.
func (a *agentState) name() string { return strings.Trim(a.id, `"`) }
