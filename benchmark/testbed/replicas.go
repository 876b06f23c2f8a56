// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"errors"
	"strconv"

	"k8s.io/client-go/rest"

	"github.com/oam-dev/cluster-gateway/benchmark/measure"
	"github.com/oam-dev/cluster-gateway/benchmark/report"
	"github.com/oam-dev/cluster-gateway/benchmark/usage"
	"github.com/oam-dev/cluster-gateway/test/lab"
)

// replicated is the name of the managed cluster at the replicas.
const replicated = "replicated"

// Replicas are two gateways on one hub that forward requests to each other. The agent of the
// managed cluster is connected to the first one only.
type Replicas struct {
	bed      *Bed
	gateways []*lab.Gateway
	agents   []*lab.Agent
}

// StartReplicas starts the replicas, and an agent.
func (b *Bed) StartReplicas(ctx context.Context) (_ *Replicas, err error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	r := &Replicas{bed: b}
	defer func() {
		if err != nil {
			_ = r.Stop() // the earlier error is returned
		}
	}()
	for i := range 2 {
		g, err := b.Lab.StartGateway(ctx, lab.GatewayOptions{
			Name: "gateway-replica-" + strconv.Itoa(i), Hub: b.embeddedHub, Binary: b.options.GatewayBinary,
			ExtraArgs: append([]string{
				"--peer-advertise-address=127.0.0.1", "--peer-bind-address=127.0.0.1", "--peer-port=0",
			}, b.options.GatewayArgs...),
		})
		if err != nil {
			return nil, err
		}
		r.gateways = append(r.gateways, g)
	}
	if err := b.Register(ctx, b.Embedded, replicated); err != nil { // all of them read the same hub
		return nil, err
	}
	o, err := r.gateways[0].AgentOptions(replicated, b.Managed)
	if err != nil {
		return nil, err
	}
	o.Name, o.ExtraArgs = "agent-replica", []string{quiet}
	agent, err := b.Lab.StartAgent(ctx, o)
	if err != nil {
		return nil, err
	}
	r.agents = append(r.agents, agent)
	return r, agent.WaitReady(ctx)
}

// Stop stops what StartReplicas has started.
func (r *Replicas) Stop() error {
	var errs []error
	for _, a := range r.agents {
		errs = append(errs, a.Stop())
	}
	for _, g := range r.gateways {
		errs = append(errs, g.Stop())
	}
	return errors.Join(errs...)
}

// Routes returns the direct route, that through the replica with the agent, and that through the
// other one, which forwards.
func (r *Replicas) Routes(ctx context.Context) (routes []*measure.Route, err error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for _, way := range []struct {
		name, title string
		config      *rest.Config
	}{
		{report.Direct, "Direct", r.bed.Managed.RESTConfig()},
		{report.WithAgent, "Gateway, own endpoint, replica with the agent", r.gateways[0].ClusterRESTConfig(replicated, lab.ViaOwnEndpoint)},
		{report.Forwarded, "Gateway, own endpoint, forwarded by another replica", r.gateways[1].ClusterRESTConfig(replicated, lab.ViaOwnEndpoint)},
	} {
		route, err := measure.NewRoute(way.name, way.title, way.config)
		if err != nil {
			return nil, err
		}
		if err := route.Await(ctx); err != nil {
			return nil, err
		}
		routes = append(routes, route)
	}
	return routes, nil
}

// NewFleet returns a fleet whose agents connect to both replicas.
func (r *Replicas) NewFleet() *Fleet {
	f := r.bed.NewFleet()
	f.ports = nil
	for _, g := range r.gateways {
		f.ports = append(f.ports, g.TunnelPort())
	}
	return f
}

// FleetRoutes returns the routes to each cluster of the fleet through each replica.
func (r *Replicas) FleetRoutes(f *Fleet) ([][]*measure.Route, error) {
	all := make([][]*measure.Route, len(r.gateways))
	for i, g := range r.gateways {
		var err error
		if all[i], err = f.routes(g, lab.ViaOwnEndpoint); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// CPUSeconds returns how much CPU time the replicas have used so far, together.
func (r *Replicas) CPUSeconds(ctx context.Context) (float64, error) {
	sum := 0.0
	for _, g := range r.gateways {
		of, err := usage.Of(ctx, usage.Process{Name: "gateway", PID: func() int { return g.Pid() }})
		if err != nil {
			return 0, err
		}
		sum += of.CPUSeconds
	}
	return sum, nil
}
