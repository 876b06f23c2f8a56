// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"os"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/oam-dev/cluster-gateway/test/lab"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

// The gateways run with the race detector and at the highest log level, whose output
// TestNoCredentialIsShown reads. For benchmarks, E2E_PLAIN_GATEWAY=1 turns off both.
const (
	verbosity    = 10
	plainGateway = "E2E_PLAIN_GATEWAY"
)

// env is the lab that all tests share.
type env struct {
	lab *lab.Lab
	// binary is the gateway, and verbosity the log level it runs at.
	binary    string
	verbosity int
	// the gateways reach direct themselves, and edge only through its agents
	direct, edge *lab.Cluster
	// embedded and external are the gateways; each has a hub of its own.
	embedded, external       *lab.Gateway
	embeddedHub, externalHub *lab.Cluster
	konnectivity             *lab.KonnectivityServer
	embeddedAgent            *lab.Agent
}

// shared is set before the first test, and does not change after that.
var shared *env

func TestMain(m *testing.M) {
	if os.Getenv(strangersVariable) != "" { // a child of TestUnreadStreams
		os.Exit(sendAsStrangers())
	}
	if os.Getenv(workersVariable) != "" { // a child of TestGreedyUser
		os.Exit(work())
	}
	labtest.Main(m, start)
}

func start(ctx context.Context, l *lab.Lab) (err error) {
	e := &env{lab: l}
	plain := os.Getenv(plainGateway) != ""
	if !plain {
		e.verbosity = verbosity
	}
	if e.binary, err = lab.BuildGateway(ctx, e.lab.Dir(), !plain); err != nil {
		return err
	}
	if err := e.startClusters(ctx); err != nil {
		return err
	}
	shared = e
	return e.startGateways(ctx)
}

func (e *env) startClusters(ctx context.Context) error {
	var group errgroup.Group
	for _, c := range []struct {
		into    **lab.Cluster
		options lab.ClusterOptions
	}{
		{&e.embeddedHub, lab.ClusterOptions{Name: "hub-embedded", NoControllerManager: true, NoKwok: true}},
		{&e.externalHub, lab.ClusterOptions{Name: "hub-external", NoControllerManager: true, NoKwok: true}},
		{&e.direct, lab.ClusterOptions{Name: "direct"}},
		{&e.edge, lab.ClusterOptions{Name: "edge", Firewalled: true}},
	} {
		group.Go(func() (err error) {
			*c.into, err = e.lab.StartCluster(ctx, c.options)
			return err
		})
	}
	return group.Wait()
}

func (e *env) startGateways(ctx context.Context) (err error) {
	if e.konnectivity, err = e.lab.StartKonnectivityServer(ctx, lab.KonnectivityServerOptions{}); err != nil {
		return err
	}
	if e.embedded, err = e.lab.StartGateway(ctx, lab.GatewayOptions{Name: "gateway-embedded", Hub: e.embeddedHub, Binary: e.binary, Verbosity: e.verbosity,
		ExtraArgs: []string{"--proxy-application-cookies"}}); err != nil {
		return err
	}
	if e.external, err = e.lab.StartGateway(ctx, lab.GatewayOptions{
		Name: "gateway-external", Hub: e.externalHub, Binary: e.binary, Konnectivity: e.konnectivity, Verbosity: e.verbosity,
	}); err != nil {
		return err
	}
	for _, g := range []*lab.Gateway{e.embedded, e.external} {
		if err := g.RegisterAPIService(ctx); err != nil {
			return err
		}
		if err := g.RegisterCluster(ctx, "direct", e.direct, false); err != nil {
			return err
		}
		if err := g.RegisterCluster(ctx, "edge", e.edge, true); err != nil {
			return err
		}
	}
	if e.embeddedAgent, err = e.embedded.StartAgent(ctx, "edge", e.edge); err != nil {
		return err
	}
	_, err = e.startExternalAgent(ctx, e.edge)
	return err
}

// startExternalAgent starts an agent of a cluster that connects to the konnectivity-server.
func (e *env) startExternalAgent(ctx context.Context, c *lab.Cluster) (*lab.Agent, error) {
	cert, key, err := e.konnectivity.AgentFiles(c.Name())
	if err != nil {
		return nil, err
	}
	agent, err := e.lab.StartAgent(ctx, lab.AgentOptions{
		Name: "agent-external-" + c.Name(), Cluster: c, ServerPort: e.konnectivity.AgentPort(), CertFile: cert, KeyFile: key,
		CAFile: e.konnectivity.CAFile(), Identifiers: []string{"host=" + c.Name()},
	})
	if err != nil {
		return nil, err
	}
	return agent, agent.WaitReady(ctx)
}

// route is one path to a cluster; door is one of the two endpoints of the gateway.
type route struct {
	name    string
	cluster string
	gateway *lab.Gateway
	target  *lab.Cluster
	door    lab.Via
}

// routes returns the three routes by both endpoints.
func (e *env) routes() []route {
	var all []route
	for _, door := range []lab.Via{lab.ViaHub, lab.ViaOwnEndpoint} {
		all = append(all,
			route{"direct/" + string(door), "direct", e.embedded, e.direct, door},
			route{"embedded/" + string(door), "edge", e.embedded, e.edge, door},
			route{"external/" + string(door), "edge", e.external, e.edge, door})
	}
	return all
}

// forEachRoute runs a test by every route and every endpoint.
func forEachRoute(t *testing.T, test func(t *testing.T, r route)) {
	t.Helper()
	for _, r := range shared.routes() {
		t.Run(r.name, func(t *testing.T) { test(t, r) })
	}
}
