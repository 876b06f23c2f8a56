// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"fmt"
	"time"

	"github.com/oam-dev/cluster-gateway/pkg/health"
	"github.com/oam-dev/cluster-gateway/pkg/proxy"
	"github.com/oam-dev/cluster-gateway/pkg/registry"
)

// prober probes a cluster for the health subresource.
type prober struct {
	clusters *registry.Store
	proxy    *proxy.Handler
}

func (p prober) probe(ctx context.Context, name string) (registry.ProbeResult, error) {
	c, ok := p.clusters.Get(name)
	if !ok {
		return registry.ProbeResult{}, fmt.Errorf("this replica does not know cluster %q yet", name)
	}
	readiness, err := p.proxy.Ready(ctx, name)
	if err != nil && ctx.Err() != nil {
		return registry.ProbeResult{}, err
	}
	result := registry.ProbeResult{Latency: readiness.Latency, Time: time.Now()}
	result.Healthy, result.Reason, result.Message = health.Assess(c, err)
	if result.Healthy {
		// A server that is ready and does not report its version is ready.
		result.Version, _ = p.proxy.Version(ctx, name)
	}
	return result, nil
}
