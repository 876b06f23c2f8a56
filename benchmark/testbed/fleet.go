// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"sigs.k8s.io/apiserver-network-proxy/pkg/agent"

	"github.com/oam-dev/cluster-gateway/benchmark/measure"
	"github.com/oam-dev/cluster-gateway/test/lab"
)

// agentOrganization is the organization in the certificate of an agent.
const agentOrganization = "cluster.core.oam.dev:tunnel-agents"

// Fleet is a number of clusters behind tunnels: one managed cluster under many names, each with its
// own agent. The agents run in this process and use the stock agent's library and settings. It is
// not safe for concurrent use.
type Fleet struct {
	bed    *Bed
	names  []string
	stops  []chan struct{}
	agents []*agent.ClientSet
	// ports are those of the tunnel servers, to which the agents connect in turn.
	ports []int

	mu    sync.Mutex
	dials []time.Time
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
	for _, name := range f.names[from:] {
		if err := f.AddAgent(name); err != nil {
			return err
		}
	}
	return nil
}

// AddAgent starts an agent for a cluster. It does not wait until the agent is connected.
func (f *Fleet) AddAgent(name string) error {
	pair, err := f.bed.Embedded.TunnelCA().Issue(lab.CertOptions{CN: name, Orgs: []string{agentOrganization}})
	if err != nil {
		return err
	}
	certificate, err := pair.TLS()
	if err != nil {
		return err
	}
	stop := make(chan struct{})
	set := (&agent.ClientSetConfig{
		Address: "127.0.0.1", AgentID: name,
		// The stock agent's defaults.
		SyncInterval: time.Second, SyncIntervalCap: 10 * time.Second, ProbeInterval: time.Second, XfrChannelSize: 150,
		DialOptions: []grpc.DialOption{
			grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
				MinVersion: tls.VersionTLS12, RootCAs: f.bed.Embedded.TunnelCA().Pool(), Certificates: []tls.Certificate{certificate}, ServerName: "127.0.0.1",
			})),
			grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: time.Hour, PermitWithoutStream: true}),
			grpc.WithContextDialer(f.dial),
		},
	}).NewAgentClientSet(make(chan struct{}), stop)
	set.SetServerCounter(agent.NewAggregateServerCounter(nil, agent.NewResponseBasedCounter(set), ""))
	set.Serve()
	f.stops, f.agents = append(f.stops, stop), append(f.agents, set)
	return nil
}

// dial connects to the next tunnel server, as a load balancer does, and records the attempt.
func (f *Fleet) dial(ctx context.Context, _ string) (net.Conn, error) {
	f.mu.Lock()
	port := f.ports[len(f.dials)%len(f.ports)]
	f.dials = append(f.dials, time.Now())
	f.mu.Unlock()
	var dialer net.Dialer
	return dialer.DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
}

// Dials returns when agents have dialed since the last call.
func (f *Fleet) Dials() []time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	dials := f.dials
	f.dials = nil
	return dials
}

// AgentsReady reports whether every agent has as many connections that the gateway has answered.
func (f *Fleet) AgentsReady(answered int) bool {
	for _, a := range f.agents {
		if a.HealthyClientsCount() < answered {
			return false
		}
	}
	return true
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
	for _, stop := range f.stops {
		close(stop)
	}
	f.stops, f.agents = nil, nil
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(registerConcurrency)
	for _, name := range f.names {
		group.Go(func() error { return f.bed.Unregister(ctx, f.bed.Embedded, name) })
	}
	f.names = nil
	return group.Wait()
}
