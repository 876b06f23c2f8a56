// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"

	"github.com/oam-dev/cluster-gateway/benchmark/testbed"
	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/test/lab"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

// What bounds the attempts of an agent to connect: see docs/scale.md.
const (
	// syncInterval is the shortest time between two attempts of an agent.
	syncInterval = time.Second
	// lostStreams is how many streams an agent can lose with a replica: for requests, for an upgrade,
	// and one that waits. An agent looks for another replica for each of them again after 1, 2, 4
	// seconds and so on.
	lostStreams = 3
	// quietFor is how long no agent may connect before the handshakes count as over.
	quietFor = 8 * time.Second
)

// storm is many clusters with two agents each over three replicas, one of which is lost.
type storm struct {
	t        *testing.T
	clusters []string
	replicas []*lab.Gateway
	agents   *testbed.Agents
	clients  map[*lab.Gateway]*http.Client
}

// TestLostReplicaOfMany loses one of three replicas of many clusters with two agents each, behind a
// load balancer that does not notice it. It reports how many handshakes the other replicas get in
// the busiest second, and when all clusters are served through each of them. No agent connects more
// often than its backoff says, and all handshakes end. In the long form, there are 1,000 clusters.
func TestLostReplicaOfMany(t *testing.T) {
	n, limit := 60, 2*caseTimeout
	if long() {
		n, limit = 1000, 15*time.Minute
	}
	ctx := bounded(t, limit)
	s := startStorm(ctx, t, n)
	s.settle(ctx, s.replicas)

	lost, left := s.replicas[0], s.replicas[1:]
	affected, there := s.agentsAt(ctx, lost), 0
	for _, agents := range affected {
		there += agents
	}
	if len(affected) < n/4 {
		t.Fatalf("only %d of %d clusters have an agent at the replica that will be lost", len(affected), n)
	}
	s.dials()
	if err := lost.Kill(); err != nil {
		t.Fatal(err)
	}
	killed := time.Now()
	served := s.awaitServed(ctx, left)
	dials := s.settle(ctx, left)
	s.awaitServed(ctx, left)
	s.check(dials, killed, lost, there)
	slices.Sort(served)
	t.Logf("%d of %d clusters had agents at the lost replica, %d in total. Through the others, half of the clusters were served after %s, and all after %s",
		len(affected), n, there, served[len(served)/2].Round(time.Millisecond), served[len(served)-1].Round(time.Millisecond))
}

func startStorm(ctx context.Context, t *testing.T, n int) *storm {
	t.Helper()
	klog.SetLogger(logr.Discard()) // the library of the agents logs each connection
	t.Cleanup(klog.ClearLogger)
	hub, err := shared.lab.StartCluster(ctx, lab.ClusterOptions{Name: "hub-storm", NoControllerManager: true, NoKwok: true})
	if err != nil {
		t.Fatal(err)
	}
	stopAfter(t, hub)
	s := &storm{t: t, agents: testbed.NewAgents(), clients: map[*lab.Gateway]*http.Client{}}
	var ports []int
	for _, name := range []string{"a", "b", "c"} {
		g, err := shared.lab.StartGateway(ctx, lab.GatewayOptions{
			Name: "gateway-storm-" + name, Hub: hub, Binary: shared.binary,
			ExtraArgs: []string{"--peer-advertise-address=127.0.0.1", "--peer-bind-address=127.0.0.1", "--peer-port=0"},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = g.Kill() })
		client, err := rest.HTTPClientFor(g.RESTConfig(lab.ViaOwnEndpoint))
		if err != nil {
			t.Fatal(err)
		}
		s.replicas, ports, s.clients[g] = append(s.replicas, g), append(ports, g.TunnelPort()), client
	}
	ca := s.replicas[0].TunnelCA()
	if err := s.agents.Configure(testbed.AgentsConfig{CA: ca.CertPEM(), Ports: ports}, &testbed.Nothing{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.agents.Stop)
	data := map[string][]byte{"endpoint": []byte(shared.direct.Endpoint()), "ca.crt": shared.direct.CAPEM(), "token": token(t, shared.direct, "cluster-gateway")}
	var group errgroup.Group
	group.SetLimit(8)
	for i := range n {
		name := fmt.Sprintf("storm-%04d", i)
		s.clusters = append(s.clusters, name)
		group.Go(func() error {
			if err := hub.ApplySecret(ctx, lab.SecretOptions{Name: name, Tunnel: true, Data: data}); err != nil {
				return err
			}
			var configs []testbed.AgentConfig
			for _, agent := range []string{"/one", "/two"} {
				pair, err := ca.Issue(lab.CertOptions{CN: name, Orgs: []string{v1alpha1.AgentOrganization}})
				if err != nil {
					return err
				}
				configs = append(configs, testbed.AgentConfig{Name: name + agent, Certificate: pair.CertPEM, Key: pair.KeyPEM})
			}
			return s.agents.Add(configs, &testbed.Nothing{})
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	return s
}

// dials returns when agents have dialed since the last call.
func (s *storm) dials() (all []testbed.Dial) {
	if err := s.agents.Dials(testbed.Nothing{}, &all); err != nil {
		s.t.Fatal(err)
	}
	return all
}

var agentsSample = regexp.MustCompile(`^cluster_gateway_tunnel_agents\{cluster="(storm-\d+)"\} ([1-9]\d*)`)

// agentsAt returns how many agents the clusters have at a replica, without those that have none.
func (s *storm) agentsAt(ctx context.Context, g *lab.Gateway) map[string]int {
	s.t.Helper()
	text, err := g.Metrics(ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	found := map[string]int{}
	for line := range bytes.Lines(text) {
		if m := agentsSample.FindSubmatch(line); m != nil {
			if found[string(m[1])], err = strconv.Atoi(string(m[2])); err != nil {
				s.t.Fatal(err)
			}
		}
	}
	return found
}

// settle waits until each cluster has agents at two replicas, and until no agent has dialed for
// quietFor. It returns the attempts of that time.
func (s *storm) settle(ctx context.Context, replicas []*lab.Gateway) (all []testbed.Dial) {
	s.t.Helper()
	labtest.Within(s.t, 3*time.Minute, "each cluster to have agents at two replicas", func() error {
		at := map[string]int{}
		for _, g := range replicas {
			for cluster := range s.agentsAt(ctx, g) {
				at[cluster]++
			}
		}
		once := 0
		for _, cluster := range s.clusters {
			if at[cluster] < 2 {
				once++
			}
		}
		if once > 0 {
			return fmt.Errorf("%d of %d clusters have agents at fewer", once, len(s.clusters))
		}
		return nil
	})
	quiet := time.Now()
	labtest.Within(s.t, time.Minute, "the handshakes to end", func() error {
		if more := s.dials(); len(more) > 0 {
			all, quiet = append(all, more...), more[len(more)-1].At
		}
		if since := time.Since(quiet); since < quietFor {
			return fmt.Errorf("the last one was %s ago", since.Round(time.Millisecond))
		}
		return nil
	})
	return all
}

// awaitServed sends requests to each cluster through each replica until one succeeds, and returns
// how long that took for each.
func (s *storm) awaitServed(ctx context.Context, through []*lab.Gateway) (after []time.Duration) {
	s.t.Helper()
	began := time.Now()
	var mu sync.Mutex
	var group errgroup.Group
	for _, g := range through {
		for _, cluster := range s.clusters {
			url := g.Endpoint() + gatewayPath + "/" + cluster + "/proxy/version"
			group.Go(func() error {
				for {
					attempt, cancel := context.WithTimeout(ctx, 10*time.Second)
					err := getOK(attempt, s.clients[g], url)
					cancel()
					if err == nil {
						break
					}
					if ctx.Err() != nil {
						return fmt.Errorf("%s: %w", cluster, err)
					}
					time.Sleep(100 * time.Millisecond)
				}
				mu.Lock()
				defer mu.Unlock()
				after = append(after, time.Since(began))
				return nil
			})
		}
	}
	if err := group.Wait(); err != nil {
		s.t.Fatal(err)
	}
	return after
}

// check holds the attempts to connect to what the backoff of agents allows. The lost replica had as
// many agents as there says.
func (s *storm) check(dials []testbed.Dial, killed time.Time, lost *lab.Gateway, there int) {
	s.t.Helper()
	byAgent := map[string][]time.Time{}
	var handshakes []time.Time
	for _, d := range dials {
		byAgent[d.Agent] = append(byAgent[d.Agent], d.At)
		if d.Port != lost.TunnelPort() {
			handshakes = append(handshakes, d.At)
		}
	}
	most := 0
	for _, agent := range slices.Sorted(maps.Keys(byAgent)) {
		at := byAgent[agent]
		most = max(most, len(at))
		for i := range at[1:] {
			if gap := at[i+1].Sub(at[i]); gap < syncInterval {
				s.t.Errorf("%s dialed again after %s", agent, gap)
			}
		}
	}
	busiest, first := 0, 0
	for i := range handshakes {
		for handshakes[i].Sub(handshakes[first]) > syncInterval {
			first++
		}
		busiest = max(busiest, i-first+1)
	}
	last := time.Duration(0)
	if len(dials) > 0 {
		last = dials[len(dials)-1].At.Sub(killed)
	}
	s.t.Logf("%d agents of %d dialed %d times, at most %d times each, %d of them to the lost replica; the last time was %s after it was lost. The others had %d handshakes, %d in the busiest second",
		len(byAgent), 2*len(s.clusters), len(dials), most, len(dials)-len(handshakes), last.Round(time.Millisecond), len(handshakes), busiest)
	if busiest > there {
		s.t.Errorf("%d handshakes in one second; the lost replica had %d agents, and each dials at most once in %s", busiest, there, syncInterval)
	}
	// Without backoff, an agent would dial once in each interval.
	if limit := lostStreams * (2 + int(math.Log2(max(1, last.Seconds())))); most > limit {
		s.t.Errorf("an agent dialed %d times in %s; %d streams that are each opened again, and then after 1, 2, 4 s and so on, are at most %d", most, last, lostStreams, limit)
	}
}
