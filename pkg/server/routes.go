// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"fmt"
	"net"

	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/dialer"
)

// tunnelRoute makes the dialers of clusters on the tunnel route.
type tunnelRoute interface {
	// dialer returns a dialer for the cluster.
	dialer(c *cluster.Cluster, purpose dialer.Purpose) (dialer.Dialer, error)
	// run serves until ctx ends.
	run(ctx context.Context) error
	// close releases what the route holds. It is called instead of run.
	close()
}

// noTunnel refuses every cluster of the tunnel route.
type noTunnel struct{}

var _ tunnelRoute = noTunnel{}

// dialer implements tunnelRoute.
func (noTunnel) dialer(c *cluster.Cluster, _ dialer.Purpose) (dialer.Dialer, error) {
	return nil, fmt.Errorf("cluster %q needs a tunnel, but the gateway runs with --tunnel-mode=off", c.Name)
}

// run implements tunnelRoute.
func (noTunnel) run(ctx context.Context) error { <-ctx.Done(); return nil }

// close implements tunnelRoute.
func (noTunnel) close() {}

// newTunnelRoute returns the route of the mode. embedded is the same route if the mode is embedded,
// and nil otherwise. a decides which agents are accepted. Connections take their buffers from m.
func newTunnelRoute(ctx context.Context, c TunnelConfig, hub HubConfig, a *agentAcceptance, m dialer.Memory, others otherReplicas) (route tunnelRoute, embedded *embeddedTunnel, err error) {
	switch c.Mode {
	case cluster.TunnelEmbedded:
		embedded, err = newEmbeddedTunnel(c.Embedded, hub, a, m, others)
		return embedded, embedded, err
	case cluster.TunnelExternal:
		external := *c.External
		external.Memory = m
		servers, err := dialer.NewKonnectivity(ctx, external)
		return &externalTunnel{servers}, nil, err
	default:
		return noTunnel{}, nil, nil
	}
}

// dialers chooses the dialer of a cluster. No cluster changes from one route to the other: a
// cluster on the tunnel route is never dialed directly.
type dialers struct{ tunnel tunnelRoute }

func (d dialers) dialer(c *cluster.Cluster, purpose dialer.Purpose) (dialer.Dialer, error) {
	switch c.Route {
	case cluster.RouteTunnel:
		return d.tunnel.dialer(c, purpose)
	case cluster.RouteDirect:
		return dialer.NewDirect(c.Name, c.ProxyURL)
	default:
		return nil, fmt.Errorf("cluster %q has no route", c.Name)
	}
}

// agentAddress is where agents connect. It is nil unless the tunnel server is embedded.
func agentAddress(t *embeddedTunnel) net.Addr {
	if t == nil {
		return nil
	}
	return t.listener.Addr()
}
