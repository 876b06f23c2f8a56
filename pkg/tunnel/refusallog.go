// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"sync"
	"time"

	"k8s.io/klog/v2"
)

const (
	// refusalLogInterval is the least time between two log lines about the same refusal. An agent that
	// is refused tries again every few seconds, for as long as nobody looks at it.
	refusalLogInterval = time.Minute
	// maxLoggedRefusals bounds the refusals that are told apart. The others share one.
	maxLoggedRefusals = 4096
)

// refusalLog logs refusals of agents: the first one of a cluster for a reason at once, and how many
// followed at most once in each interval. The zero value is ready to use.
type refusalLog struct {
	mu   sync.Mutex
	last map[refusalKey]*loggedRefusal
}

type refusalKey struct{ message, cluster, reason string }

type loggedRefusal struct {
	at time.Time
	// more is how many were not logged since, and address where the last one came from.
	more    int
	address string
}

// log logs a refusal, or counts it. The cluster and the address are empty if they are not known.
func (l *refusalLog) log(logger klog.Logger, key refusalKey, address string, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	slot := key
	if l.last[slot] == nil && len(l.last) >= maxLoggedRefusals {
		slot = refusalKey{}
	}
	last := l.last[slot]
	switch {
	case last == nil:
		if l.last == nil {
			l.last = map[refusalKey]*loggedRefusal{}
		}
		l.last[slot] = &loggedRefusal{at: now}
		logger.Info(key.message, key.values(address, 0)...)
	case now.Sub(last.at) < refusalLogInterval:
		last.more, last.address = last.more+1, address
	default:
		logger.Info(key.message, key.values(address, last.more)...)
		*last = loggedRefusal{at: now}
	}
}

// flush logs what was only counted an interval ago or longer, and forgets it.
func (l *refusalLog) flush(logger klog.Logger, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, last := range l.last {
		if now.Sub(last.at) < refusalLogInterval {
			continue
		}
		switch {
		case last.more == 0:
			delete(l.last, key)
		case key == refusalKey{}:
			logger.Info("Refused further agents", "times", last.more, "since", last.at.UTC().Format(time.RFC3339))
			delete(l.last, key)
		default:
			logger.Info(key.message, key.values(last.address, last.more-1)...)
			*last = loggedRefusal{at: now}
		}
	}
}

// values are the values of a log line about one refusal and those that were only counted.
func (k refusalKey) values(address string, more int) []any {
	var values []any
	if k.cluster != "" {
		values = append(values, "cluster", k.cluster)
	}
	if address != "" {
		values = append(values, "address", address)
	}
	values = append(values, "reason", k.reason)
	if more > 0 {
		values = append(values, "moreTimes", more)
	}
	return values
}

// logRefusal logs that an agent's stream was refused.
func (s *Server) logRefusal(cluster, address, reason string) {
	s.refusalLog.log(s.cfg.Logger, refusalKey{"Refused an agent", cluster, reason}, address, time.Now())
}
