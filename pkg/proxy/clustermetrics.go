// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"strconv"
	"sync"
	"time"
)

// clusterMetrics record the metrics of one registered cluster. They are deleted together with it.
// What is in progress then is no longer counted, because that would bring the deleted metrics back.
type clusterMetrics struct {
	metrics *Metrics
	cluster string

	mu      sync.RWMutex
	deleted bool
}

// record calls f unless the metrics have been deleted.
func (c *clusterMetrics) record(f func(m *Metrics)) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if !c.deleted {
		f(c.metrics)
	}
}

func (c *clusterMetrics) requestStarted(route string) {
	c.record(func(m *Metrics) { m.inFlight.WithLabelValues(c.cluster, route).Inc() })
}

func (c *clusterMetrics) requestEnded(route string, x *exchange, elapsed time.Duration) {
	c.record(func(m *Metrics) {
		m.inFlight.WithLabelValues(c.cluster, route).Dec()
		m.requests.WithLabelValues(c.cluster, route, x.attributes.verb, strconv.Itoa(x.code)).Inc()
		if !x.streaming {
			m.requestDuration.WithLabelValues(c.cluster, route, x.attributes.verb).Observe(elapsed.Seconds())
		}
	})
}

// requestRefused counts a request that was not sent to the cluster.
func (c *clusterMetrics) requestRefused(route string, a attributes, code int) {
	c.record(func(m *Metrics) { m.requests.WithLabelValues(c.cluster, route, a.verb, strconv.Itoa(code)).Inc() })
}

// identityRefused counts a request whose caller's identity is not carried to the cluster.
func (c *clusterMetrics) identityRefused(reason string) {
	c.record(func(m *Metrics) { m.identityRefused.WithLabelValues(c.cluster, reason).Inc() })
}

// streamRevoked counts a stream that ended because its caller has lost the permission.
func (c *clusterMetrics) streamRevoked(route string) {
	c.record(func(m *Metrics) { m.streamsRevoked.WithLabelValues(c.cluster, route).Inc() })
}

func (c *clusterMetrics) dialEnded(route, stage, result string, elapsed time.Duration) {
	c.record(func(m *Metrics) {
		m.dials.WithLabelValues(c.cluster, route, stage, result).Inc()
		m.dialDuration.WithLabelValues(c.cluster, route).Observe(elapsed.Seconds())
	})
}

// addConnections adds n, which may be negative, to the number of open connections.
func (c *clusterMetrics) addConnections(route string, n float64) {
	c.record(func(m *Metrics) { m.connections.WithLabelValues(c.cluster, route).Add(n) })
}

func (c *clusterMetrics) delete() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deleted = true
	match := map[string]string{"cluster": c.cluster}
	c.metrics.requests.DeletePartialMatch(match)
	c.metrics.requestDuration.DeletePartialMatch(match)
	c.metrics.inFlight.DeletePartialMatch(match)
	c.metrics.dials.DeletePartialMatch(match)
	c.metrics.dialDuration.DeletePartialMatch(match)
	c.metrics.connections.DeletePartialMatch(match)
	c.metrics.agentsRefused.DeletePartialMatch(match)
	c.metrics.tunnelUpgrades.DeletePartialMatch(match)
	c.metrics.identityRefused.DeletePartialMatch(match)
}
