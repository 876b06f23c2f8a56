// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"

	"github.com/oam-dev/cluster-gateway/benchmark/link"
	"github.com/oam-dev/cluster-gateway/benchmark/measure"
	"github.com/oam-dev/cluster-gateway/benchmark/report"
	"github.com/oam-dev/cluster-gateway/pkg/bootstrap"
	"github.com/oam-dev/cluster-gateway/test/lab"
)

// The names under which the managed cluster is registered: one for each route, and one for each
// link.
const (
	near   = "near"
	tunnel = "tunnel"
	far    = "far"
)

// startTimeout bounds the start of all processes, once the components are built.
const startTimeout = 5 * time.Minute

// Bed is a running testbed.
type Bed struct {
	Lab     *lab.Lab
	Managed *lab.Cluster
	// Embedded and External are the gateways.
	Embedded, External *lab.Gateway
	Konnectivity       *lab.KonnectivityServer
	// EmbeddedAgent and ExternalAgent serve the cluster "tunnel". The other agents serve "far",
	// through the links.
	EmbeddedAgent, ExternalAgent       *lab.Agent
	embeddedFarAgent, externalFarAgent *lab.Agent

	embeddedHub, externalHub *lab.Cluster
	agentArgs                []string // of EmbeddedAgent
	links                    []*link.Link
	directLink               *link.Link
	// own are clients of the gateways' own APIs. Each is created once: client-go forgets the transport
	// of an unused client, but closes its connections only later, and these would be counted as the
	// gateway's.
	own     map[*lab.Gateway]*measure.Route
	options Options
	failed  bool
}

// Options configure a testbed.
type Options struct {
	// Out receives progress messages.
	Out io.Writer
	// GatewayBinary is the gateway to measure. If it is empty, the gateway of this checkout is built.
	GatewayBinary string
	// GatewayArgs are added to the gateways' arguments.
	GatewayArgs []string
}

// Start starts a testbed. It is closed when ctx ends.
func Start(ctx context.Context, o Options) (_ *Bed, err error) {
	binaries, err := lab.FindBinaries(ctx, lab.BinariesOptions{Out: o.Out})
	if err != nil {
		return nil, err
	}
	b := &Bed{own: map[*lab.Gateway]*measure.Route{}}
	if b.Lab, err = lab.New(context.WithoutCancel(ctx), lab.Options{Binaries: binaries, Out: o.Out, KeepLogs: func() bool { return b.failed }}); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			b.failed = true
			_ = b.Close() // an earlier error is returned instead
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if o.GatewayBinary == "" {
		fmt.Fprintln(o.Out, "building the gateway")
		if o.GatewayBinary, err = lab.BuildGateway(ctx, b.Lab.Dir(), false); err != nil {
			return nil, err
		}
	}
	b.options = o
	for _, step := range []func(context.Context, Options) error{b.startClusters, b.startGateways, b.startAgents} {
		if err := step(ctx, o); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// Close stops and removes everything.
func (b *Bed) Close() error {
	for _, l := range b.links {
		_ = l.Close() // everything that it connects is stopped as well
	}
	return b.Lab.Close()
}

func (b *Bed) startClusters(ctx context.Context, o Options) error {
	fmt.Fprintln(o.Out, "starting three clusters: the managed cluster, and a hub for each gateway")
	var group errgroup.Group
	for _, c := range []struct {
		into    **lab.Cluster
		options lab.ClusterOptions
	}{
		{&b.embeddedHub, lab.ClusterOptions{Name: "hub-embedded", NoControllerManager: true, NoKwok: true}},
		{&b.externalHub, lab.ClusterOptions{Name: "hub-external", NoControllerManager: true, NoKwok: true}},
		{&b.Managed, lab.ClusterOptions{Name: "managed"}},
	} {
		group.Go(func() (err error) {
			*c.into, err = b.Lab.StartCluster(ctx, c.options)
			return err
		})
	}
	return group.Wait()
}

// budget is the memory budget of the gateways. One user watches each of two clusters 2,000 times,
// which is more than one cluster can have with the default of 1 GiB.
const budget = "--memory-budget=4Gi"

func (b *Bed) startGateways(ctx context.Context, o Options) (err error) {
	fmt.Fprintln(o.Out, "starting two gateways, a konnectivity-server, and their agents")
	if b.Konnectivity, err = b.Lab.StartKonnectivityServer(ctx, lab.KonnectivityServerOptions{ExtraArgs: []string{quiet}}); err != nil {
		return err
	}
	if b.Embedded, err = b.Lab.StartGateway(ctx, lab.GatewayOptions{
		Name: "gateway-embedded", Hub: b.embeddedHub, Binary: o.GatewayBinary, ExtraArgs: append([]string{budget}, o.GatewayArgs...),
	}); err != nil {
		return err
	}
	if b.External, err = b.Lab.StartGateway(ctx, lab.GatewayOptions{
		Name: "gateway-external", Hub: b.externalHub, Binary: o.GatewayBinary, Konnectivity: b.Konnectivity, ExtraArgs: append([]string{budget}, o.GatewayArgs...),
	}); err != nil {
		return err
	}
	for _, g := range []*lab.Gateway{b.Embedded, b.External} {
		if b.own[g], err = measure.NewRoute("own", "the gateway's own API", g.RESTConfig(lab.ViaOwnEndpoint)); err != nil {
			return err
		}
		if err := g.RegisterAPIService(ctx); err != nil {
			return err
		}
		for _, name := range []string{near, tunnel, far} {
			if g == b.Embedded && name == tunnel {
				continue // see bootstrap
			}
			if err := b.Register(ctx, g, name); err != nil {
				return err
			}
		}
	}
	return b.bootstrap(ctx)
}

// bootstrap registers the managed cluster with agent-bootstrap, as users do, which also writes the
// arguments of its agent. The cluster is registered once. Its other names, and those on the other
// hub, are Secrets with the same contents.
func (b *Bed) bootstrap(ctx context.Context) error {
	dir := filepath.Join(b.Lab.Dir(), "agent-"+tunnel)
	var out bytes.Buffer
	cmd := bootstrap.NewCommand(bootstrap.Config{Out: &out, ErrOut: &out})
	cmd.SetArgs([]string{"register", tunnel, "--kubeconfig", b.embeddedHub.Kubeconfig(), "--cluster-kubeconfig", b.Managed.Kubeconfig(), "--out-dir", dir, "--wait", "0"})
	if err := cmd.ExecuteContext(ctx); err != nil {
		return fmt.Errorf("agent-bootstrap register: %w\n%s", err, out.Bytes())
	}
	flags, err := os.ReadFile(filepath.Join(dir, "agent.flags"))
	b.agentArgs = strings.Fields(string(flags))
	return err
}

// registeredAgent returns the options of the agent of that cluster.
func (b *Bed) registeredAgent() (lab.AgentOptions, error) {
	return lab.AgentOptions{Name: "agent-embedded-" + tunnel, Cluster: b.Managed, Args: b.agentArgs}, nil
}

// Register registers the managed cluster under a name. If the name begins with "near", the gateway
// dials the cluster; otherwise, it uses a tunnel.
//
// A stock server selects the agent by the host of the endpoint. 127.0.0.1 and localhost are the
// same API server, whose certificate is valid for both, so they distinguish two agents without a
// change of name resolution.
func (b *Bed) Register(ctx context.Context, g *lab.Gateway, name string) error {
	token, err := b.token(ctx)
	if err != nil {
		return err
	}
	host := b.Managed.Address()
	if name == far && g == b.External {
		host = farHost
	}
	return b.hub(g).ApplySecret(ctx, b.secret(name, token, host))
}

// token is the gateways' credential, which is the same for all names.
func (b *Bed) token(ctx context.Context) (string, error) {
	return b.Managed.ServiceAccountToken(ctx, "cluster-gateway-system", "cluster-gateway", "cluster-admin")
}

func (b *Bed) secret(name, token, host string) lab.SecretOptions {
	return lab.SecretOptions{Name: name, Tunnel: !strings.HasPrefix(name, near), Data: map[string][]byte{
		"endpoint": []byte("https://" + net.JoinHostPort(host, strconv.Itoa(b.Managed.Port()))),
		"ca.crt":   b.Managed.CAPEM(),
		"token":    []byte(token),
	}}
}

// RouteTo returns a route to the managed cluster under any of its names.
func (b *Bed) RouteTo(g *lab.Gateway, name string, via lab.Via) (*measure.Route, error) {
	return measure.NewRoute(string(via)+"/"+name, name, g.ClusterRESTConfig(name, via))
}

// Unregister removes a name.
func (b *Bed) Unregister(ctx context.Context, g *lab.Gateway, name string) error {
	return b.hub(g).DeleteSecret(ctx, name)
}

// hub returns the hub of a gateway.
func (b *Bed) hub(g *lab.Gateway) *lab.Cluster {
	if g == b.External {
		return b.externalHub
	}
	return b.embeddedHub
}

const farHost = "localhost"

// quiet is for stock agents and servers: by default, they run with --v=4 and log one or two lines
// for every packet.
const quiet = "--v=1"

func (b *Bed) startAgents(ctx context.Context, _ Options) (err error) {
	embeddedLink, err := b.link(b.Embedded.TunnelPort())
	if err != nil {
		return err
	}
	externalLink, err := b.link(b.Konnectivity.AgentPort())
	if err != nil {
		return err
	}
	if b.directLink, err = b.link(b.Managed.Port()); err != nil {
		return err
	}
	for _, a := range []struct {
		into    **lab.Agent
		options func() (lab.AgentOptions, error)
	}{
		{&b.EmbeddedAgent, b.registeredAgent},
		{&b.embeddedFarAgent, func() (lab.AgentOptions, error) { return b.embeddedAgent(far, embeddedLink.Port()) }},
		{&b.ExternalAgent, func() (lab.AgentOptions, error) {
			return b.externalAgent(tunnel, b.Managed.Address(), b.Konnectivity.AgentPort())
		}},
		{&b.externalFarAgent, func() (lab.AgentOptions, error) { return b.externalAgent(far, farHost, externalLink.Port()) }},
	} {
		o, err := a.options()
		if err != nil {
			return err
		}
		if *a.into, err = b.Lab.StartAgent(ctx, o); err != nil {
			return err
		}
		if err := (*a.into).WaitReady(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (b *Bed) link(port int) (*link.Link, error) {
	l, err := link.New("127.0.0.1:" + strconv.Itoa(port))
	if err == nil {
		b.links = append(b.links, l)
	}
	return l, err
}

func (b *Bed) embeddedAgent(name string, port int) (lab.AgentOptions, error) {
	o, err := b.Embedded.AgentOptions(name, b.Managed)
	o.Name, o.ServerPort, o.ExtraArgs = "agent-embedded-"+name, port, []string{quiet}
	return o, err
}

func (b *Bed) externalAgent(name, host string, port int) (lab.AgentOptions, error) {
	cert, key, err := b.Konnectivity.AgentFiles(name)
	return lab.AgentOptions{
		Name: "agent-external-" + name, Cluster: b.Managed, ServerPort: port, CertFile: cert, KeyFile: key,
		CAFile: b.Konnectivity.CAFile(), Identifiers: []string{"host=" + host}, ExtraArgs: []string{quiet},
	}, err
}

// RestartEmbeddedAgent starts the agent of "tunnel" again after it was killed.
func (b *Bed) RestartEmbeddedAgent(ctx context.Context) error {
	o, err := b.registeredAgent()
	if err != nil {
		return err
	}
	b.EmbeddedAgent, err = b.Lab.StartAgent(ctx, o)
	return err
}

// RestartExternalAgent does the same for the external server's agent.
func (b *Bed) RestartExternalAgent(ctx context.Context) error {
	o, err := b.externalAgent(tunnel, b.Managed.Address(), b.Konnectivity.AgentPort())
	if err != nil {
		return err
	}
	b.ExternalAgent, err = b.Lab.StartAgent(ctx, o)
	return err
}

// SetDistance sets the distance of the cluster "far" on all routes to it. A bandwidth of 0 means no
// limit.
func (b *Bed) SetDistance(rtt time.Duration, bandwidth float64) {
	for _, l := range b.links {
		l.Set(rtt, bandwidth)
	}
}

// The names of the routes, and their titles in reports.
const (
	HubDirect   = "hub-direct"
	HubEmbedded = "hub-embedded"
	HubExternal = "hub-external"
	OwnDirect   = "own-direct"
	OwnEmbedded = "own-embedded"
	OwnExternal = "own-external"
)

// Routes returns the routes to the managed cluster without a link.
func (b *Bed) Routes() ([]*measure.Route, error) {
	return b.routes(b.Managed.RESTConfig(), near, tunnel)
}

// FarRoutes returns the routes through the links. A direct cluster has no tunnel, so the gateway's
// direct routes are not included.
func (b *Bed) FarRoutes() ([]*measure.Route, error) {
	config := b.Managed.RESTConfig()
	config.Host = (&url.URL{Scheme: "https", Host: b.directLink.Addr()}).String()
	return b.routes(config, "", far)
}

func (b *Bed) routes(direct *rest.Config, dialed, tunneled string) ([]*measure.Route, error) {
	type way struct {
		name, title string
		config      *rest.Config
	}
	ways := []way{{report.Direct, "Direct", direct}}
	for _, door := range []struct {
		via                               lab.Via
		title, direct, embedded, external string
	}{
		{lab.ViaHub, "hub", HubDirect, HubEmbedded, HubExternal},
		{lab.ViaOwnEndpoint, "own endpoint", OwnDirect, OwnEmbedded, OwnExternal},
	} {
		if dialed != "" {
			ways = append(ways, way{door.direct, "Gateway, " + door.title + ", direct cluster", b.Embedded.ClusterRESTConfig(dialed, door.via)})
		}
		ways = append(ways,
			way{door.embedded, "Gateway, " + door.title + ", embedded tunnel", b.Embedded.ClusterRESTConfig(tunneled, door.via)},
			way{door.external, "Gateway, " + door.title + ", konnectivity-server", b.External.ClusterRESTConfig(tunneled, door.via)})
	}
	routes := make([]*measure.Route, len(ways))
	for i, w := range ways {
		var err error
		if routes[i], err = measure.NewRoute(w.name, w.title, w.config); err != nil {
			return nil, err
		}
	}
	return routes, nil
}

// Pod creates the Pod for exec and port-forward, and returns its namespace and name.
func (b *Bed) Pod(ctx context.Context) (*corev1.Pod, error) {
	return b.Managed.RunPod(ctx, "default", "benchmark")
}

// OwnAPI returns a route to the embedded gateway's own API, which is not that of a cluster.
func (b *Bed) OwnAPI(via lab.Via) (*measure.Route, error) {
	return measure.NewRoute(string(via), "the gateway's API", b.Embedded.RESTConfig(via))
}

// Token returns an administrator's token for the cluster that a route's client connects to. It is
// for clients that do not support client certificates. It is empty for a route that does not belong
// to the testbed.
func (b *Bed) Token(ctx context.Context, route string) (string, error) {
	clusters := map[string]*lab.Cluster{
		report.Direct: b.Managed, HubDirect: b.embeddedHub, HubEmbedded: b.embeddedHub, HubExternal: b.externalHub,
		OwnDirect: b.embeddedHub, OwnEmbedded: b.embeddedHub, OwnExternal: b.externalHub,
	}
	c := clusters[route]
	if c == nil {
		return "", nil
	}
	return c.ServiceAccountToken(ctx, "default", "benchmark", "cluster-admin")
}
