// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/dialer"
	"github.com/oam-dev/cluster-gateway/pkg/dialer/dialertest"
	"github.com/oam-dev/cluster-gateway/pkg/peers"
	"github.com/oam-dev/cluster-gateway/pkg/pki"
	"github.com/oam-dev/cluster-gateway/pkg/tunnel"
)

// member is one replica of a deployment that is scaled: with a tunnel server, a port for the other
// replicas and an endpoint for clients, as pkg/server wires them.
type member struct {
	*gateway
	id      string
	tunnel  *tunnel.Server
	agents  string // the address for agents
	peers   *peers.Peers
	serving *peers.Server
	// stopPeers and stopTunnel end the parts and wait for them.
	stopPeers, stopTunnel func()
}

// deployment has the replicas that run, and the load balancer for agents.
type deployment struct {
	hub    kubernetes.Interface
	keeper *pki.Keeper
	ca     *dialertest.CA
	api    *apiServer
	// affine makes the balancer lead all agents, which have one address, to the same replica.
	affine  bool
	address string

	mu      sync.Mutex
	turn    int
	members []*member
	// failures are the requests that failed.
	failures []string
	sent     int
}

func newDeployment(t *testing.T, affine bool) *deployment {
	t.Helper()
	d := &deployment{hub: fake.NewClientset(), ca: dialertest.NewCA(t, "tunnel"), affine: affine}
	d.api = newAPIServer(t, ok)
	d.keeper = pki.NewKeeper(pki.KeeperConfig{
		Client: d.hub, Namespace: "gateway", CASecret: pki.PeerCASecret, ServingSecret: pki.PeerSecret,
		Hosts: []string{peers.ServerName}, Organization: v1alpha1.PeerOrganization,
	})
	if err := d.keeper.LoadOrCreate(t.Context()); err != nil {
		t.Fatal(err)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d.address = lis.Addr().String()
	var group sync.WaitGroup
	t.Cleanup(func() { _ = lis.Close(); group.Wait() })
	group.Go(func() {
		for {
			agent, err := lis.Accept()
			if err != nil {
				return
			}
			group.Go(func() { d.carry(t.Context(), agent) })
		}
	})
	return d
}

// carry carries a connection of an agent to a replica.
func (d *deployment) carry(ctx context.Context, agent net.Conn) {
	defer agent.Close()
	defer context.AfterFunc(ctx, func() { _ = agent.Close() })()
	d.mu.Lock()
	if len(d.members) == 0 {
		d.mu.Unlock()
		return
	}
	to := d.members[0]
	if !d.affine {
		d.turn++
		to = d.members[d.turn%len(d.members)]
	}
	d.mu.Unlock()
	up, err := net.Dial("tcp", to.agents)
	if err != nil {
		return
	}
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{agent, up}, {up, agent}} {
		both.Go(func() {
			_, _ = io.Copy(way[0], way[1]) // its end is the end of this connection
			_ = way[0].Close()
			_ = way[1].Close()
		})
	}
	both.Wait()
}

// add starts a replica. It serves when it is ready.
func (d *deployment) add(t *testing.T, id string) *member {
	t.Helper()
	m := &member{id: id}
	m.tunnel = tunnel.New(tunnel.Config{
		ServerID: id, ServerCount: 2, TLS: d.ca.ServerTLS(t),
		Missing: func(name string) bool { return m.peers.Missing(name, 2) },
	})
	here := func(name string) bool { n, _ := m.tunnel.Agents(name); return n > 0 }
	forPeers := dialertest.Listen(t)
	m.peers = peers.New(peers.Config{
		Client: d.hub, Namespace: "gateway", ID: id, Address: forPeers.Addr().String(), Credentials: d.keeper, Metrics: peers.NewMetrics(), Here: here,
		Forwarded: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) { m.handler.Forwarded(peers.ClusterOf).ServeHTTP(w, req) }),
	})
	m.serving = m.peers.Server()
	m.tunnel.OnAgentsChange(m.peers.SetAgents)
	m.gateway = newGateway(t, func(cfg *Config) {
		cfg.Forwarder = m.peers
		cfg.Dialers = func(c *cluster.Cluster, purpose dialer.Purpose) (dialer.Dialer, error) {
			return m.tunnel.Dialer(c.Name, c.Endpoint.Host, purpose), nil
		}
	})
	m.set(throughTunnel(seesIdentity(d.api.secret("edge"), "impersonate", "")))
	forAgents := dialertest.Listen(t)
	m.agents = forAgents.Addr().String()
	run := func(parts ...func(context.Context) error) func() {
		ctx, cancel := context.WithCancel(context.Background())
		var group sync.WaitGroup
		for _, part := range parts {
			group.Go(func() {
				if err := part(ctx); err != nil {
					t.Errorf("replica %s: %v", id, err)
				}
			})
		}
		stop := sync.OnceFunc(func() { cancel(); group.Wait() })
		t.Cleanup(stop)
		return stop
	}
	m.stopPeers = run(m.peers.Run, func(ctx context.Context) error { return m.serving.Serve(ctx, forPeers) })
	m.stopTunnel = run(func(ctx context.Context) error { return m.tunnel.Serve(ctx, forAgents) })
	eventually(t, "the new replica to know the others", func() bool { return m.peers.Ready() == nil })
	d.mu.Lock()
	alone := len(d.members) == 0
	d.mu.Unlock()
	if !alone {
		eventually(t, "the new replica to know who has the agent", func() bool { return here("edge") || m.peers.Elsewhere("edge") })
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.members = append(d.members, m)
	return m
}

// shutdownMoment is how long a replica serves after the others were told that it drains. It is what
// an operator chooses, and does not wait for anything.
const shutdownMoment = time.Second

// remove stops a replica as pkg/server does: the balancers leave it out, the others and its agents
// are told, and it serves until the agent has found another one, and the others know it.
func (d *deployment) remove(t *testing.T, m *member) {
	t.Helper()
	d.mu.Lock()
	d.members = slices.DeleteFunc(d.members, func(other *member) bool { return other == m })
	others := slices.Clone(d.members)
	d.mu.Unlock()
	m.peers.Drain()
	m.tunnel.Leave()
	// --shutdown-delay-duration is as long as this takes, and a moment more, in which all know it.
	eventually(t, "the others to be told", func() bool {
		lease, err := d.hub.CoordinationV1().Leases("gateway").Get(t.Context(), "cluster-gateway-peer-"+m.id, metav1.GetOptions{})
		return err == nil && lease.Annotations["cluster.core.oam.dev/gateway-peer-draining"] == "true"
	})
	time.Sleep(shutdownMoment)
	eventually(t, "each other replica to reach the cluster without this one", func() bool {
		return !slices.ContainsFunc(others, func(other *member) bool {
			n, _ := other.tunnel.Agents("edge")
			// Missing counts the replica itself as one that has an agent.
			return n == 0 && (len(others) == 1 || other.peers.Missing("edge", 2))
		})
	})
	ctx, cancel := context.WithTimeout(t.Context(), maxWait)
	defer cancel()
	m.serving.Shutdown(ctx)
	m.stopPeers()
	m.stopTunnel()
}

// send sends 50 requests per second, each to one of the replicas, until ctx ends.
func (d *deployment) send(ctx context.Context) {
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	var group sync.WaitGroup
	defer group.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		d.mu.Lock()
		m := d.members[rand.IntN(len(d.members))]
		d.sent++
		d.mu.Unlock()
		group.Go(func() {
			if err := get(m); err != nil {
				d.mu.Lock()
				defer d.mu.Unlock()
				d.failures = append(d.failures, m.id+": "+err.Error())
			}
		})
	}
}

func get(m *member) error {
	req, err := http.NewRequest(http.MethodGet, m.url("edge", "/api"), nil) //nolint:noctx // the client waits for its answer
	if err != nil {
		return err
	}
	req.Header.Set(userHeader, "jane")
	resp, err := m.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%d %s", resp.StatusCode, text)
	}
	return err
}

// TestScaledUnderTraffic shows that no request fails while one replica becomes four and one again,
// with a stock agent, by load balancers that take turns and by such that keep clients together.
func TestScaledUnderTraffic(t *testing.T) {
	rounds := 1
	if os.Getenv("E2E_LONG") != "" {
		rounds = 5
	}
	for name, affine := range map[string]bool{"round robin": false, "affine": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDeployment(t, affine)
			first := d.add(t, "r0")
			dialertest.StartAgent(t, dialertest.AgentConfig{Address: d.address, CA: d.ca, Pair: d.ca.Client(t, "edge", v1alpha1.AgentOrganization), ID: "agent"})
			eventually(t, "the agent to connect", func() bool { n, _ := first.tunnel.Agents("edge"); return n > 0 })
			ctx, stop := context.WithCancel(t.Context())
			var sending sync.WaitGroup
			sending.Go(func() { d.send(ctx) })
			defer sending.Wait()
			defer stop()
			for round := range rounds {
				for i := range 3 {
					d.add(t, fmt.Sprintf("r%d-%d", round, i))
				}
				for range 3 { // the oldest one first, which has the agent
					d.remove(t, d.members[0])
				}
			}
			stop()
			sending.Wait()
			if len(d.failures) > 0 {
				t.Errorf("%d of %d requests failed, the first one: %s", len(d.failures), d.sent, d.failures[0])
			}
			left := d.members[0]
			if n, _ := left.tunnel.Agents("edge"); n != 1 || left.peers.Elsewhere("edge") {
				t.Errorf("the replica that is left has %d agents, want 1", n)
			}
			t.Logf("%d requests", d.sent)
		})
	}
}
