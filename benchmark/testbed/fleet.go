// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/oam-dev/cluster-gateway/benchmark/measure"
	"github.com/oam-dev/cluster-gateway/test/lab"
)

// agentOrganization is the organization in the certificate of an agent.
const agentOrganization = "cluster.core.oam.dev:tunnel-agents"

// Fleet is a number of clusters behind tunnels: one managed cluster under many names, each with its
// own agent. The agents use the stock agent's library and settings, and run in processes of this
// binary: see [ServeAgents]. It is not safe for concurrent use.
type Fleet struct {
	bed       *Bed
	names     []string
	processes []*agentProcess
	// ports are those of the tunnel servers, to which the agents connect in turn.
	ports []int
}

// NewFleet returns an empty fleet.
func (b *Bed) NewFleet() *Fleet { return &Fleet{bed: b, ports: []int{b.Embedded.TunnelPort()}} }

// Names returns the names of the clusters.
func (f *Fleet) Names() []string { return f.names }

// registerConcurrency is how many clusters are registered in parallel.
const registerConcurrency = 8

// Grow adds clusters until there are n.
func (f *Fleet) Grow(ctx context.Context, n int) error {
	from := len(f.names)
	for i := from; i < n; i++ {
		f.names = append(f.names, fmt.Sprintf("fleet-%04d", i))
	}
	token, err := f.bed.token(ctx)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(registerConcurrency)
	for _, name := range f.names[from:] {
		group.Go(func() error {
			return f.bed.hub(f.bed.Embedded).ApplySecret(ctx, f.bed.secret(name, token, f.bed.Managed.Address()))
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return f.addAgents(ctx, f.names[from:])
}

// AddAgent starts an agent for a cluster. It does not wait until the agent is connected.
func (f *Fleet) AddAgent(ctx context.Context, name string) error {
	return f.addAgents(ctx, []string{name})
}

// RemoveAgent stops the agent of a cluster.
func (f *Fleet) RemoveAgent(name string) error {
	for _, p := range f.processes {
		if slices.Contains(p.names, name) {
			p.names = slices.DeleteFunc(p.names, func(n string) bool { return n == name })
			return p.call("Remove", name, &Nothing{})
		}
	}
	return fmt.Errorf("there is no agent %s", name)
}

// addAgents starts agents, in more processes if those that run are full.
func (f *Fleet) addAgents(ctx context.Context, names []string) error {
	most := agentsPerProcess(OpenFilesLimit())
	for len(names) > 0 {
		if len(f.processes) == 0 || len(f.processes[len(f.processes)-1].names) >= most {
			p, err := startAgentProcess(ctx, AgentsConfig{CA: f.bed.Embedded.TunnelCA().CertPEM(), Ports: f.ports})
			if err != nil {
				return err
			}
			f.processes = append(f.processes, p)
		}
		p := f.processes[len(f.processes)-1]
		n := min(len(names), most-len(p.names))
		configs := make([]AgentConfig, n)
		for i, name := range names[:n] {
			pair, err := f.bed.Embedded.TunnelCA().Issue(lab.CertOptions{CN: name, Orgs: []string{agentOrganization}})
			if err != nil {
				return err
			}
			configs[i] = AgentConfig{Name: name, Certificate: pair.CertPEM, Key: pair.KeyPEM}
		}
		if err := p.call("Add", configs, &Nothing{}); err != nil {
			return err
		}
		p.names = append(p.names, names[:n]...)
		names = names[n:]
	}
	return nil
}

// Dials returns when agents have dialed since the last call, in order.
func (f *Fleet) Dials() ([]time.Time, error) {
	var all []time.Time
	for _, p := range f.processes {
		var dials []Dial
		if err := p.call("Dials", Nothing{}, &dials); err != nil {
			return nil, err
		}
		for _, d := range dials {
			all = append(all, d.At)
		}
	}
	slices.SortFunc(all, time.Time.Compare)
	return all, nil
}

// Waiting returns how many agents have fewer connections that the gateway has answered.
func (f *Fleet) Waiting(answered int) (int, error) {
	all := 0
	for _, p := range f.processes {
		waiting := 0
		if err := p.call("Waiting", answered, &waiting); err != nil {
			return 0, err
		}
		all += waiting
	}
	return all, nil
}

// Routes returns a route to each cluster of the fleet by one endpoint of the gateway.
func (f *Fleet) Routes(via lab.Via) ([]*measure.Route, error) { return f.routes(f.bed.Embedded, via) }

func (f *Fleet) routes(g *lab.Gateway, via lab.Via) ([]*measure.Route, error) {
	routes := make([]*measure.Route, len(f.names))
	for i, name := range f.names {
		var err error
		if routes[i], err = f.bed.RouteTo(g, name, via); err != nil {
			return nil, err
		}
	}
	return routes, nil
}

// Stop stops the agents and unregisters the clusters.
func (f *Fleet) Stop(ctx context.Context) error {
	var errs []error
	for _, p := range f.processes {
		errs = append(errs, p.stop())
	}
	f.processes = nil
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(registerConcurrency)
	for _, name := range f.names {
		group.Go(func() error { return f.bed.Unregister(ctx, f.bed.Embedded, name) })
	}
	f.names = nil
	return errors.Join(append(errs, group.Wait())...)
}
