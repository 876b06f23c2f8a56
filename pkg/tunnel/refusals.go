// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"errors"
	"sync"
	"time"
)

// refusalsReportedFor is how long a refusal is reported. A stock agent that is refused tries again
// within 30 s.
const refusalsReportedFor = 2 * time.Minute

// refusals are the agents that were refused because their cluster had as many as Config.MaxAgents
// allows. The zero value is ready to use.
type refusals struct {
	mu   sync.Mutex
	last map[string]refusal
}

type refusal struct {
	at     time.Time
	reason string
}

func (r *refusals) add(cluster, reason string, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last == nil {
		r.last = map[string]refusal{}
	}
	r.last[cluster] = refusal{now, reason}
}

func (r *refusals) recent(cluster string, now time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	last, ok := r.last[cluster]
	if !ok || now.Sub(last.at) > refusalsReportedFor {
		return nil
	}
	return errors.New(last.reason)
}

// removeOld removes what is no longer reported, so that deleted clusters use no memory.
func (r *refusals) removeOld(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for cluster, last := range r.last {
		if now.Sub(last.at) > refusalsReportedFor {
			delete(r.last, cluster)
		}
	}
}

// RecentRefusal returns why an agent of the cluster was refused recently although its certificate
// is accepted: the cluster already has as many agents or connections as Config.MaxAgents allows.
// It returns nil if none was.
func (s *Server) RecentRefusal(cluster string) error { return s.refusals.recent(cluster, time.Now()) }

// refuse records that an agent of the cluster was refused.
func (s *Server) refuse(cluster, reason string) {
	s.refusals.add(cluster, reason, time.Now())
	for _, f := range s.onRefusal {
		f(cluster)
	}
}
