// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"sync/atomic"
	"time"
)

// silenceFor is how long an agent counts as one that does not answer, unless something arrives. By
// then, keepalive has ended the streams of one that is really gone.
const silenceFor = keepaliveTime + keepaliveTimeout

// silence is whether an agent has ceased to answer on one of its streams. Requests then use another
// agent, also one at another replica. The zero value is an agent that answers.
type silence struct {
	// since is in Unix nanoseconds; 0 if the agent answers.
	since atomic.Int64
}

func (s *silence) begin(now time.Time) { s.since.Store(now.UnixNano()) }

// end is called for everything that arrives.
func (s *silence) end() {
	if s.since.Load() != 0 {
		s.since.Store(0)
	}
}

// lasts reports whether the agent still counts as one that does not answer.
func (s *silence) lasts(now time.Time) bool {
	since := s.since.Load()
	return since != 0 && now.Sub(time.Unix(0, since)) < silenceFor
}

// fellSilent notes that an agent does not answer. A nil agent, that of an enrollment, has no
// record.
func (a *agentState) fellSilent() {
	if a != nil {
		a.silence.begin(time.Now())
	}
}

// spoke notes that something has arrived from an agent, which can be nil.
func (a *agentState) spoke() {
	if a != nil {
		a.silence.end()
	}
}
