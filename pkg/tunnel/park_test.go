// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"bytes"
	"crypto/rand"
	"io"
	"maps"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/dialer"
	"github.com/oam-dev/cluster-gateway/pkg/dialer/dialertest"
)

// countingMemory is a dialer.Memory without a limit.
type countingMemory struct{ taken, most atomic.Int64 }

func (m *countingMemory) Take(_ string, n int64) bool {
	now := m.taken.Add(n)
	for {
		most := m.most.Load()
		if now <= most || m.most.CompareAndSwap(most, now) {
			return true
		}
	}
}

func (m *countingMemory) Give(_ string, n int64) { m.taken.Add(-n) }

// endpoint is a server that gives each of its connections to the test.
type endpoint struct {
	address  string
	accepted chan net.Conn
}

func newEndpoint(t testing.TB) *endpoint {
	lis := dialertest.Listen(t)
	e := &endpoint{address: lis.Addr().String(), accepted: make(chan net.Conn, 1000)}
	go func() {
		for {
			c, err := lis.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { _ = c.Close() })
			e.accepted <- c
		}
	}()
	return e
}

// stopped waits until n has not changed for a while.
func stopped(t *testing.T, what string, n *atomic.Int64) {
	t.Helper()
	last, since := int64(-1), time.Now()
	dialertest.Eventually(t, what, func() bool {
		if now := n.Load(); now != last {
			last, since = now, time.Now()
		}
		return last > 0 && time.Since(since) > 500*time.Millisecond
	})
}

// An endpoint that floods an upgraded connection whose client does not read is stopped after a few
// MiB. Nobody else is delayed meanwhile, nothing is lost, and the memory is accounted for.
func TestSlowClientStopsEndpoint(t *testing.T) {
	t.Parallel()
	const total = 64 << 20
	memory := &countingMemory{}
	g := startGateway(t, func(c *Config) {
		c.Memory, c.ReceiveBuffer = memory, 16<<20 // less than what the endpoint sends
		c.stallTimeout, c.checkInterval = time.Second, 20*time.Millisecond
	})
	g.startStockAgent(t, "east", "a")
	flood, echo := newEndpoint(t), echoEndpoint(t)
	requests := mustDialAddress(t, g, echo, dialer.ForRequests)
	slow := mustDialAddress(t, g, flood.address, dialer.ForUpgrades)
	var sent atomic.Int64
	piece := make([]byte, 64<<10)
	_, _ = rand.Read(piece)
	far := dialertest.Within(t, flood.accepted, "the endpoint")
	go func() {
		for range total / len(piece) {
			n, err := far.Write(piece)
			sent.Add(int64(n))
			if err != nil {
				return
			}
		}
		_ = far.Close()
	}()
	stopped(t, "the endpoint to be stopped", &sent)
	if n := sent.Load(); n >= total/2 {
		t.Errorf("the endpoint sent %d MiB of %d before anything was read", n>>20, total>>20)
	}
	for range 20 {
		mustEcho(t, requests, "a request")
	}
	mustEcho(t, mustDialAddress(t, g, echo, dialer.ForUpgrades), "another upgrade")
	if most := memory.most.Load(); most < acceptAtLeast || most > 2<<20 {
		t.Errorf("%d bytes were taken from the memory budget", most)
	}
	read := 0
	buf := make([]byte, len(piece))
	for read < total {
		if _, err := io.ReadFull(slow, buf); err != nil {
			t.Fatalf("after %d MiB: %v", read>>20, err)
		}
		if !bytes.Equal(buf, piece) {
			t.Fatalf("other bytes arrive after %d MiB", read>>20)
		}
		read += len(buf)
	}
	if _, err := slow.Read(buf); err != io.EOF { //nolint:errorlint // exactly a clean end
		t.Errorf("after everything: %v, want EOF", err)
	}
	if n := memory.taken.Load(); n != 0 {
		t.Errorf("%d bytes are still taken from the memory budget", n)
	}
}

// acceptAtLeast is what a connection with a slow client takes from the memory budget at least.
const acceptAtLeast = 512 << 10

// An upload that its endpoint does not read stands still for longer than any timeout. Neither it
// nor another upgrade fails.
func TestSleepingEndpointStopsClient(t *testing.T) {
	t.Parallel()
	const total = 32 << 20
	g := startGateway(t, func(c *Config) { c.stallTimeout, c.checkInterval = 200*time.Millisecond, 20*time.Millisecond })
	g.startStockAgent(t, "east", "a")
	sleeping, echo := newEndpoint(t), echoEndpoint(t)
	requests := mustDialAddress(t, g, echo, dialer.ForRequests)
	upload := mustDialAddress(t, g, sleeping.address, dialer.ForUpgrades)
	var sent atomic.Int64
	written := make(chan error, 1)
	go func() {
		piece := make([]byte, 64<<10)
		for range total / len(piece) {
			n, err := upload.Write(piece)
			sent.Add(int64(n))
			if err != nil {
				written <- err
				return
			}
		}
		written <- nil
	}()
	neighbor := mustDialAddress(t, g, echo, dialer.ForUpgrades)
	stopped(t, "the upload to be stopped", &sent)
	if n := sent.Load(); n >= total {
		t.Errorf("the upload was not stopped")
	}
	dialertest.Eventually(t, "a stream that counts as stalled", func() bool {
		for _, se := range g.candidates("east", dialer.ForUpgrades) {
			if se.stalled(time.Now(), time.Second) {
				return true
			}
		}
		return false
	})
	mustEcho(t, neighbor, "the other upgrade")
	mustEcho(t, requests, "a request")
	far := dialertest.Within(t, sleeping.accepted, "the endpoint")
	if _, err := io.CopyN(io.Discard, far, total); err != nil {
		t.Errorf("the rest of the upload: %v", err)
	}
	if err := dialertest.Within(t, written, "the upload"); err != nil {
		t.Errorf("the upload: %v", err)
	}
}

// Fifty upgrades at the same time on one agent all work. Afterwards the streams fall back to what
// is kept, and that is used again.
func TestBurstOfUpgrades(t *testing.T) {
	t.Parallel()
	const n = 50
	var own, shared atomic.Int64
	g := startGateway(t, func(c *Config) {
		c.checkInterval, c.spareFor, c.warmFor = 20*time.Millisecond, 200*time.Millisecond, time.Hour
		c.ownStreamTimeout = 300 * time.Millisecond // the agent's sync interval is shorter in tests
	}, func(s *Server) {
		s.OnUpgrade(func(_ string, alone bool) {
			if alone {
				own.Add(1)
			} else {
				shared.Add(1)
			}
		})
	})
	g.startStockAgent(t, "east", "a")
	echo := echoEndpoint(t)
	var all sync.WaitGroup
	for range n {
		all.Go(func() {
			d := g.Dialer("east", echo, dialer.ForUpgrades)
			defer func() { _ = d.Close() }()
			c, err := d.DialContext(t.Context(), "tcp", echo)
			if err != nil {
				t.Errorf("dial: %v", err)
				return
			}
			_ = c.SetDeadline(time.Now().Add(dialertest.HangTimeout))
			message := make([]byte, 100<<10)
			go func() { _, _ = c.Write(message) }()
			if _, err := io.ReadFull(c, message); err != nil {
				t.Errorf("echo: %v", err)
			}
		})
	}
	all.Wait()
	if own.Load() == 0 || own.Load()+shared.Load() != n {
		t.Errorf("%d upgrades with a stream of their own and %d that share one, want %d in all", own.Load(), shared.Load(), n)
	}
	t.Logf("%d own, %d shared", own.Load(), shared.Load())
	// One for requests, and one that is kept.
	g.awaitStreams(t, "east", "a", 2)
	g.awaitParked(t, "east", "a")
	mustEcho(t, mustDialAddress(t, g, echo, dialer.ForUpgrades), "on the stream that was kept")
	if in := g.streams("east", "a"); in != 2 {
		t.Errorf("%d streams in use, want 2", in)
	}
}

// Many transfers of which half are aborted leave nothing behind.
func TestAbortedTransfersLeaveNothing(t *testing.T) {
	const n = 40
	memory := &countingMemory{}
	g := startGateway(t, func(c *Config) {
		c.Memory = memory
		c.checkInterval, c.spareFor, c.warmFor, c.stallTimeout = 20*time.Millisecond, 50*time.Millisecond, 50*time.Millisecond, time.Second
		c.ownStreamTimeout = 300 * time.Millisecond
	})
	g.startStockAgent(t, "east", "a")
	flood := dialertest.Listen(t)
	const total = 8 << 20
	go func() {
		for {
			c, err := flood.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = c.Write(make([]byte, total)); _ = c.Close() }()
		}
	}()
	before := runtime.NumGoroutine()
	var all sync.WaitGroup
	d := g.Dialer("east", flood.Addr().String(), dialer.ForUpgrades)
	for i := range n {
		all.Go(func() {
			c, err := d.DialContext(t.Context(), "tcp", flood.Addr().String())
			if err != nil {
				t.Errorf("dial: %v", err)
				return
			}
			want := int64(total)
			if i%2 == 0 {
				want /= 4 // and then it is aborted
			}
			if _, err := io.CopyN(io.Discard, c, want); err != nil {
				t.Errorf("transfer: %v", err)
			}
			_ = c.Close()
		})
	}
	all.Wait()
	_ = d.Close()
	g.awaitStreams(t, "east", "a", 1)
	g.awaitParked(t, "east", "a")
	dialertest.Eventually(t, "the memory", func() bool { return memory.taken.Load() == 0 })
	dialertest.Eventually(t, "the goroutines", func() bool { return runtime.NumGoroutine() <= before+5 })
}

// When an agent is killed, its parked stream ends, and the upgrade on a stream of its own fails. A
// new process of the agent is used.
func TestAgentKilledWithOwnStream(t *testing.T) {
	t.Parallel()
	g := startGateway(t, nil)
	echo := echoEndpoint(t)
	a := g.startStockAgent(t, "east", "a")
	c := mustDialAddress(t, g, echo, dialer.ForUpgrades)
	g.awaitParked(t, "east", "a")
	a.Stop()
	if err := dialertest.Within(t, readError(c), "Read"); err == nil {
		t.Error("the end of the agent looks like a clean end of the connection")
	}
	g.awaitStreams(t, "east", "a", 0)
	dialertest.Eventually(t, "the parked stream to end", func() bool { return g.parked("east", "a") == 0 })
	if n, _ := g.Agents("east"); n != 0 {
		t.Errorf("%d agents, want none", n)
	}
	g.startStockAgent(t, "east", "a")
	mustEcho(t, mustDialAddress(t, g, echo, dialer.ForUpgrades), "again")
}

// If the stream for requests breaks, the parked one takes its place, and the agent parks another.
func TestParkedStreamReplacesBrokenOne(t *testing.T) {
	t.Parallel()
	g := startGateway(t, nil)
	echo := echoEndpoint(t)
	g.startStockAgent(t, "east", "a")
	for range 3 {
		for _, se := range g.candidates("east", dialer.ForRequests) {
			if se.agent != nil && se.purpose == dialer.ForRequests && g.streams("east", "a") == 1 {
				se.end(errStalled)
				break
			}
		}
		mustEcho(t, mustDialAddress(t, g, echo, dialer.ForRequests), "the parked stream")
		g.awaitParked(t, "east", "a")
	}
}

// When the server is restarted, agents with a parked stream come back.
func TestServerRestarts(t *testing.T) {
	t.Parallel()
	ca := dialertest.NewCA(t, "tunnel")
	b := newBalancer(t)
	echo := echoEndpoint(t)
	for i := range 3 {
		g := startGateway(t, func(c *Config) { c.TLS = ca.ServerTLS(t) })
		b.set(g.address)
		if i == 0 {
			dialertest.StartAgent(t, dialertest.AgentConfig{Address: b.address, CA: ca, Pair: ca.Client(t, "east", v1alpha1.AgentOrganization), ID: "a"})
		}
		g.awaitParked(t, "east", "a")
		mustEcho(t, mustDialAddress(t, g, echo, dialer.ForRequests), "a request")
		mustEcho(t, mustDialAddress(t, g, echo, dialer.ForUpgrades), "an upgrade")
		g.stop()
	}
}

// Behind a load balancer that takes turns, an agent gets a stream for requests at each of three
// replicas, though two is all that they are told, and upgrades work on all.
func TestReplicasBehindRoundRobin(t *testing.T) {
	t.Parallel()
	ca := dialertest.NewCA(t, "tunnel")
	b := newBalancer(t)
	var replicas []*gateway
	var addresses []string
	for _, id := range []string{"one", "two", "three"} {
		g := startReplica(t, ca, id)
		replicas, addresses = append(replicas, g), append(addresses, g.address)
	}
	b.set(addresses...)
	dialertest.StartAgent(t, dialertest.AgentConfig{Address: b.address, CA: ca, Pair: ca.Client(t, "east", v1alpha1.AgentOrganization), ID: "a"})
	echo := echoEndpoint(t)
	for _, g := range replicas {
		dialertest.Eventually(t, "streams at each replica", func() bool { return g.streams("east", "a") >= 2 })
		mustEcho(t, mustDialAddress(t, g, echo, dialer.ForRequests), "a request")
		first, second := mustDialAddress(t, g, echo, dialer.ForUpgrades), mustDialAddress(t, g, echo, dialer.ForUpgrades)
		mustEcho(t, first, "an upgrade")
		mustEcho(t, second, "another one")
	}
	// A replica that comes later is found, too, though no stream has ended.
	late := startReplica(t, ca, "late")
	b.set(append(addresses, late.address)...)
	dialertest.Eventually(t, "streams at the replica that came later", func() bool { return late.streams("east", "a") >= 2 })
	mustEcho(t, mustDialAddress(t, late, echo, dialer.ForUpgrades), "an upgrade there")
}

// Behind a load balancer that keeps clients together, an agent stays at one replica. That replica
// works, and the agent does not connect again and again.
func TestReplicasBehindStickyBalancer(t *testing.T) {
	t.Parallel()
	ca := dialertest.NewCA(t, "tunnel")
	b := newBalancer(t)
	g := startReplica(t, ca, "one")
	b.set(g.address)
	dialertest.StartAgent(t, dialertest.AgentConfig{Address: b.address, CA: ca, Pair: ca.Client(t, "east", v1alpha1.AgentOrganization), ID: "a"})
	echo := echoEndpoint(t)
	g.awaitParked(t, "east", "a")
	// Upgrades that last, each with a stream of its own, although the parked one is freed
	// meanwhile.
	for range 5 {
		mustEcho(t, mustDialAddress(t, g, echo, dialer.ForUpgrades), "an upgrade")
	}
	mustEcho(t, mustDialAddress(t, g, echo, dialer.ForRequests), "a request")
	before := b.connections.Load()
	dialertest.Eventually(t, "ten more connections", func() bool { return b.connections.Load() >= before+10 })
	if again := g.parkedAgain(t, "east"); again != g.cfg.parkedLong {
		t.Errorf("after all these connections, the next stream is parked for %s, want the longest time", again)
	}
}

// parkedAgain returns how long the next stream of the cluster's only agent stays parked.
func (g *gateway) parkedAgain(t *testing.T, cluster string) time.Duration {
	t.Helper()
	g.mu.RLock()
	agents := slices.Collect(maps.Values(g.clusters[cluster].agents))
	g.mu.RUnlock()
	if len(agents) != 1 {
		t.Fatalf("%d agents, want 1", len(agents))
	}
	return g.parkedFor(agents[0])
}

// TestSettledAgentsConnectNoMore shows that agents that have found as many replicas as they should
// make no more connections, and that they look for another one when one is missing.
func TestSettledAgentsConnectNoMore(t *testing.T) {
	t.Parallel()
	ca := dialertest.NewCA(t, "tunnel")
	b := newBalancer(t)
	var mu sync.Mutex
	var replicas []*gateway
	var addresses []string
	var asked, missed atomic.Int64
	add := func(id string) *gateway {
		g := startGateway(t, func(c *Config) {
			c.ServerID, c.ServerCount, c.TLS = id, 2, ca.ServerTLS(t)
			c.parkedShort, c.parkedLong, c.parkedSearch = 20*time.Millisecond, 10*time.Millisecond, 100*time.Millisecond
			c.Missing = func(cluster string) bool { // as peers.Peers.Missing
				asked.Add(1)
				mu.Lock()
				defer mu.Unlock()
				have := 0
				for _, g := range replicas {
					if n, _ := g.Agents(cluster); n > 0 {
						have++
					}
				}
				missing := have < min(2, len(replicas))
				if missing {
					missed.Add(1)
				}
				return missing
			}
		})
		mu.Lock()
		defer mu.Unlock()
		replicas, addresses = append(replicas, g), append(addresses, g.address)
		b.set(addresses...)
		return g
	}
	settles := func(what string) {
		t.Helper()
		before := int64(-1)
		dialertest.Eventually(t, what, func() bool { // after so many times that nothing was missing, and no connection
			if now := b.connections.Load() + missed.Load(); now != before {
				before = now
				asked.Store(0)
			}
			return asked.Load() > 100
		})
	}
	first := add("one")
	dialertest.StartAgent(t, dialertest.AgentConfig{Address: b.address, CA: ca, Pair: ca.Client(t, "east", v1alpha1.AgentOrganization), ID: "a"})
	first.awaitParked(t, "east", "a")
	settles("an agent of one replica to settle")
	if n := b.connections.Load(); n != 3 { // for requests, for upgrades, and parked
		t.Errorf("an agent of one replica has made %d connections, want 3", n)
	}
	second := add("two")
	dialertest.Eventually(t, "a stream at the replica that came later", func() bool { return second.streams("east", "a") > 0 })
	settles("an agent of two replicas to settle")
	add("three")
	settles("an agent with as many replicas as it needs to stay settled")
	echo := echoEndpoint(t)
	for _, g := range []*gateway{first, second} {
		mustEcho(t, mustDialAddress(t, g, echo, dialer.ForRequests), "a request")
		mustEcho(t, mustDialAddress(t, g, echo, dialer.ForUpgrades), "an upgrade")
	}

	// One is lost.
	mu.Lock()
	replicas, addresses = append([]*gateway{second}, replicas[2:]...), addresses[1:]
	b.set(addresses...)
	mu.Unlock()
	first.stop()
	dialertest.Eventually(t, "a stream at the third replica", func() bool { return replicas[1].streams("east", "a") > 0 })
	settles("the agent to settle again")
}

// TestLeavingReplica shows that settled agents find another replica before theirs stops, and that
// their connections work until then.
func TestLeavingReplica(t *testing.T) {
	t.Parallel()
	ca := dialertest.NewCA(t, "tunnel")
	b := newBalancer(t)
	var replicas []*gateway
	for _, id := range []string{"one", "two"} {
		replicas = append(replicas, startGateway(t, func(c *Config) {
			c.ServerID, c.ServerCount, c.TLS = id, 2, ca.ServerTLS(t)
			c.Missing = func(string) bool { return false }
		}))
	}
	leaving, staying := replicas[0], replicas[1]
	b.set(leaving.address)
	dialertest.StartAgent(t, dialertest.AgentConfig{Address: b.address, CA: ca, Pair: ca.Client(t, "east", v1alpha1.AgentOrganization), ID: "a"})
	leaving.awaitParked(t, "east", "a")
	echo := echoEndpoint(t)
	request, upgrade := mustDialAddress(t, leaving, echo, dialer.ForRequests), mustDialAddress(t, leaving, echo, dialer.ForUpgrades)
	b.set(staying.address)
	leaving.Leave()
	dialertest.Eventually(t, "a stream at the replica that stays", func() bool { return staying.streams("east", "a") > 0 })
	mustEcho(t, request, "a request through the replica that leaves")
	mustEcho(t, upgrade, "an upgrade through it")
	mustEcho(t, mustDialAddress(t, leaving, echo, dialer.ForRequests), "a new connection through it")
	leaving.stop()
	mustEcho(t, mustDialAddress(t, staying, echo, dialer.ForRequests), "through the replica that stays")
	staying.awaitParked(t, "east", "a")
}

// TestLeavingReplicaAlone shows that an agent that finds no other replica while its own one stops
// does not look for one again at once. With thousands of agents, that would be as many handshakes
// per second until the replica has stopped.
func TestLeavingReplicaAlone(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Config){
		"of one": func(c *Config) { c.ServerCount = 1 },
		"of two": func(c *Config) { c.ServerCount = 2 },
		"that knows the others": func(c *Config) {
			c.ServerCount, c.Missing = 2, func(string) bool { return false }
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := startGateway(t, func(c *Config) {
				change(c)
				c.parkedShort, c.parkedLong, c.parkedSearch = 10*time.Second, 10*time.Second, 10*time.Second
			})
			g.startStockAgent(t, "east", "a")
			freed := func() (n int) {
				g.mu.RLock()
				defer g.mu.RUnlock()
				for _, a := range g.clusters["east"].agents {
					n += a.freed
				}
				return n
			}
			g.Leave()
			dialertest.Eventually(t, "the agent to be freed", func() bool { return freed() == 1 })
			g.awaitParked(t, "east", "a")
			time.Sleep(3 * time.Second) // three sync intervals of the agent
			if n := freed(); n != 1 {
				t.Errorf("the agent was freed %d times in three seconds", n)
			}
		})
	}
}

// TestSearchGetsRarer shows that an agent that a load balancer keeps at one replica connects less
// and less often.
func TestSearchGetsRarer(t *testing.T) {
	t.Parallel()
	g := startGateway(t, func(c *Config) {
		c.ServerCount, c.Missing = 2, func(string) bool { return true }
		c.parkedShort = time.Millisecond
	})
	dialertest.StartAgent(t, dialertest.AgentConfig{Address: g.address, CA: g.ca, Pair: g.ca.Client(t, "east", v1alpha1.AgentOrganization), ID: "a"})
	g.awaitParked(t, "east", "a")
	last := time.Duration(0)
	for range 5 { // each is twice as long as the one before, and at most a quarter more
		dialertest.Eventually(t, "the next stream to be parked longer", func() bool { return g.parkedAgain(t, "east") > last*3/2 })
		last = g.parkedAgain(t, "east")
	}
}

func startReplica(t *testing.T, ca *dialertest.CA, id string) *gateway {
	return startGateway(t, func(c *Config) {
		c.ServerID, c.ServerCount, c.TLS = id, 2, ca.ServerTLS(t)
		c.parkedShort, c.parkedLong = 20*time.Millisecond, 200*time.Millisecond
		c.ownStreamTimeout = 300 * time.Millisecond
	})
}

// balancer is a load balancer of connections that takes turns.
type balancer struct {
	address     string
	connections atomic.Int64

	mu   sync.Mutex
	to   []string
	next int
}

func newBalancer(t *testing.T) *balancer {
	lis := dialertest.Listen(t)
	b := &balancer{address: lis.Addr().String()}
	go func() {
		for {
			c, err := lis.Accept()
			if err != nil {
				return
			}
			b.connections.Add(1)
			go b.forward(c)
		}
	}()
	return b
}

func (b *balancer) set(to ...string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.to = to
}

func (b *balancer) forward(c net.Conn) {
	defer func() { _ = c.Close() }()
	b.mu.Lock()
	b.next++
	address := b.to[b.next%len(b.to)]
	b.mu.Unlock()
	up, err := net.Dial("tcp", address)
	if err != nil {
		return
	}
	defer func() { _ = up.Close() }()
	go func() {
		_, _ = io.Copy(up, c)
		_ = up.Close()
		_ = c.Close()
	}()
	_, _ = io.Copy(c, up)
}
