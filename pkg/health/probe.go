// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"errors"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/dialer"
	"github.com/oam-dev/cluster-gateway/pkg/internal/untrusted"
)

// probe probes one cluster and writes what has changed. It returns the time to the next probe.
func (r *run) probe(ctx context.Context, k *tracked) time.Duration {
	c, ok := r.cfg.Clusters.Get(k.name)
	if !ok {
		return r.cfg.Interval // the call of ClusterChanged that removes it will follow
	}
	o := &observation{cluster: c}
	probed := c.Err() == nil
	started := time.Now()
	if probed {
		r.observe(ctx, k, o)
	}
	if ctx.Err() != nil {
		return r.cfg.Interval
	}
	if probed {
		r.cfg.Metrics.took(o.err, time.Since(started))
	}
	o.now = time.Now()
	o.external = r.cfg.ExternalTunnel
	if r.cfg.AgentCertificate != nil && c.Route == cluster.RouteTunnel {
		o.agent = r.cfg.AgentCertificate(k.name)
	}
	if r.cfg.AgentRefusal != nil && c.Route == cluster.RouteTunnel {
		o.refusal = r.cfg.AgentRefusal(k.name)
	}
	if r.cfg.FailingAgents != nil && c.Route == cluster.RouteTunnel {
		o.failing = r.cfg.FailingAgents(k.name)
	}
	if r.cfg.Renewal != nil {
		o.renewal = r.cfg.Renewal(k.name)
	}
	r.mu.Lock()
	k.failures++
	if o.err == nil {
		k.failures = 0
	}
	failures, outdated := k.failures, k.removed || k.fingerprint != c.Fingerprint()
	r.mu.Unlock()
	if outdated {
		return 0
	}
	if wait, ok := r.postpone(c, o, failures); ok {
		return wait
	}
	r.mu.Lock()
	if !k.removed { // otherwise its series would exist again
		r.cfg.Metrics.probed(c, o)
	}
	r.mu.Unlock()
	if err := r.record(ctx, k, o); err != nil && ctx.Err() == nil {
		r.cfg.Logger.Info("Failed to write the health of a cluster to its Secret, will retry", "cluster", k.name, "err", err)
		return min(r.cfg.Interval, time.Second)
	}
	return r.delayAfter(c, failures)
}

// observe sends the requests of a probe to the API server.
func (r *run) observe(ctx context.Context, k *tracked, o *observation) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	readiness, err := r.cfg.Prober.Ready(ctx, k.name)
	o.err, o.certificate, o.latency = err, readiness.Certificate, readiness.Latency
	if err != nil {
		k.versionAt = time.Time{} // the API server may be upgraded before it is ready again
		return
	}
	if time.Since(k.versionAt) < versionInterval {
		return
	}
	// A ready API server whose version cannot be read is still ready.
	if v, err := r.cfg.Prober.Version(ctx, k.name); err == nil {
		k.version, k.versionAt = untrusted.Text(v), time.Now()
	}
}

// postpone reports whether a failure must not be reported yet, and returns the time to the next
// probe. This is the case for the first failure of a ready cluster, and for a missing agent if the
// replica has just started.
func (r *run) postpone(c *cluster.Cluster, o *observation, failures int) (time.Duration, bool) {
	var dial *dialer.Error
	if errors.As(o.err, &dial) && dial.Stage == dialer.StagePeer {
		return r.delayAfter(c, failures), true // it says nothing about the cluster
	}
	if o.err == nil || !reportedReady(c) {
		return 0, false
	}
	if left := time.Until(r.started.Add(r.cfg.agentReconnectTime)); left > 0 && r.cfg.Agents != nil && c.Route == cluster.RouteTunnel {
		if n, _ := r.cfg.Agents.Agents(c.Name); n == 0 {
			return left, true
		}
	}
	if failures < failureThreshold {
		return r.delayAfter(c, failures), true
	}
	return 0, false
}

// reportedReady reports whether the stored condition says that the cluster is ready.
func reportedReady(c *cluster.Cluster) bool {
	for _, stored := range c.Health.Conditions {
		if stored.Type == v1alpha1.ConditionReady {
			return stored.Status == metav1.ConditionTrue
		}
	}
	return false
}
