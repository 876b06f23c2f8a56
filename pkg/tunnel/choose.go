// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/oam-dev/cluster-gateway/pkg/dialer"
)

const (
	// busyAfter is how long an agent may take to accept a packet before new dials prefer another
	// stream.
	busyAfter = time.Second
	// lagsFor is how long a stream counts as one whose client lags after that was last seen.
	lagsFor = 10 * time.Second
)

// The faults of a stream, as a choice for a dial. Each counts more than all before it, and than all
// connections.
const (
	// rankShared: other connections have the stream (an upgrade), or it is still parked (a
	// request).
	rankShared = 1 << (20 + iota)
	// rankLagging: the stream belongs to a connection whose client lags. To share it would end
	// that.
	rankLagging
	// rankOtherPurpose: an upgrade would use the stream for requests, or the other way around.
	rankOtherPurpose
	// rankSilent: the agent does not answer or does not read on this stream.
	rankSilent
	// rankDraining: the agent is about to end.
	rankDraining
	// rankSuspect: connections through the agent have failed recently.
	rankSuspect
)

// choice is a stream for a dial, on which a place is reserved. se is nil if there is none.
type choice struct {
	se *session
	// others is the number of other streams that could be tried, notDraining that of those whose
	// agent does not drain. otherAgents reports whether any of them is another agent's.
	others, notDraining int
	otherAgents         bool
	// lastSeen is set if there is no stream.
	lastSeen time.Time
}

// choose returns the best stream that has not been tried. A dial for an upgrade waits until
// waitUntil for a stream of its own, if one may arrive.
func (d *dial) choose(ctx context.Context) choice {
	s := d.server
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.clusters[d.cluster]
	if c == nil {
		return choice{}
	}
	for {
		now := time.Now()
		options := c.options(now, d.purpose, s.full(c), d.skip)
		if d.waits(c, options, now) {
			w := c.addWaiter()
			s.mu.Unlock()
			se := s.awaitStream(ctx, c, w, d.waitUntil)
			s.mu.Lock()
			if se != nil {
				return d.chosen(option{se: se}, options)
			}
			d.waitUntil = time.Time{}
			continue
		}
		for _, o := range options {
			if o.parked {
				o.se = s.activate(c, o.se.agent, d.purpose)
			}
			if o.se.reserve() {
				return d.chosen(o, options)
			}
		}
		for len(d.draining) > 0 {
			se := d.draining[0]
			d.draining = d.draining[1:]
			if se.reserve() {
				return choice{se: se}
			}
		}
		return choice{lastSeen: c.lastSeen}
	}
}

// skip reports whether the dial does not want a stream.
func (d *dial) skip(se *session) bool { return d.tried[se] || d.answered[se.agent] }

// waits reports whether the dial should wait for a stream of its own.
func (d *dial) waits(c *clusterAgents, options []option, now time.Time) bool {
	if d.purpose != dialer.ForUpgrades || !now.Before(d.waitUntil) || len(c.sessions) == 0 {
		return false
	}
	if len(options) > 0 && options[0].rank < rankShared {
		return false
	}
	return d.server.expects(c, now, func(a *agentState) bool { return d.answered[a] })
}

// chosen returns the choice of o among options.
func (d *dial) chosen(o option, options []option) choice {
	ch := choice{se: o.se}
	for _, other := range options {
		if other.se == o.se {
			continue
		}
		ch.others++
		if other.rank&rankDraining == 0 {
			ch.notDraining++
		}
		ch.otherAgents = ch.otherAgents || other.se.agent != o.se.agent
	}
	return ch
}

// option is a stream that a dial may use. parked means that it has to be activated first.
type option struct {
	se     *session
	rank   int
	parked bool
}

// options returns the streams that a dial may use, the best one first, and in turn among equals.
// full means that no further stream may be activated for an upgrade.
func (c *clusterAgents) options(now time.Time, purpose dialer.Purpose, full bool, skip func(*session) bool) []option {
	c.next++
	var all []option
	open := map[*agentState]int{}
	n := len(c.sessions)
	for i := range n {
		se := c.sessions[(c.next+i)%n]
		if se.purpose == purpose {
			open[se.agent] += se.open()
		}
		if !skip(se) {
			all = append(all, option{se: se, rank: se.rank(now, purpose)})
		}
	}
	for _, a := range c.agents {
		if len(a.parked) == 0 || purpose == dialer.ForUpgrades && full {
			continue
		}
		if se := a.parked[len(a.parked)-1]; !skip(se) {
			rank := a.rank(now) + 1 // an unused stream that is not parked is better
			if purpose == dialer.ForRequests {
				rank += rankShared
			}
			all = append(all, option{se: se, rank: rank, parked: true})
		}
	}
	for i := range all {
		all[i].rank += 2 * min(open[all[i].se.agent], rankShared/4)
	}
	slices.SortStableFunc(all, func(a, b option) int { return cmp.Compare(a.rank, b.rank) })
	return all
}

// rank is lower for an agent that is a better choice.
func (a *agentState) rank(now time.Time) (r int) {
	if a.draining {
		r += rankDraining
	}
	if a.record.suspect(now) {
		r += rankSuspect
	}
	return r
}

// rank is lower for a session that is a better choice for a dial. The connections of its agent do
// not count.
func (s *session) rank(now time.Time, purpose dialer.Purpose) int {
	r := s.agent.rank(now)
	if s.isDraining() && r&rankDraining == 0 {
		r += rankDraining
	}
	if s.unanswered.Load() || s.stalled(now, busyAfter) {
		r += rankSilent
	}
	if s.purpose != purpose {
		r += rankOtherPurpose
	}
	if purpose != dialer.ForUpgrades {
		return r
	}
	if open := s.open(); open > 0 || s.crowded {
		r += rankShared + min(open, 1<<10)
	}
	if s.lags(now) {
		r += rankLagging
	}
	return r
}
