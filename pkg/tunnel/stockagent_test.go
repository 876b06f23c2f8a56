// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"errors"
	"io"
	"maps"
	"net"
	"testing"
	"time"

	"github.com/oam-dev/cluster-gateway/pkg/dialer"
	"github.com/oam-dev/cluster-gateway/pkg/dialer/dialertest"
)

// If upgraded connections have to share a stream, one whose API server never reads blocks the
// others. Ordinary requests continue meanwhile, and the agent opens a new stream.
func TestBlockedSharedStream(t *testing.T) {
	t.Parallel()
	g := startGateway(t, func(c *Config) {
		c.maxUpgrades = 1
		c.stallTimeout = 2 * time.Second
		c.checkInterval = 20 * time.Millisecond
	})
	g.startStockAgent(t, "east", "a")
	endpoint := echoEndpoint(t)
	deaf := dialertest.Listen(t)
	accepted := make(chan net.Conn, 1)
	go func() {
		if c, err := deaf.Accept(); err == nil {
			accepted <- c
		}
	}()
	requests := mustDialAddress(t, g, endpoint, dialer.ForRequests)
	neighbor := mustDialAddress(t, g, endpoint, dialer.ForUpgrades)
	upgrade := mustDialAddress(t, g, deaf.Addr().String(), dialer.ForUpgrades)
	held := dialertest.Within(t, accepted, "the endpoint")
	defer func() { _ = held.Close() }()

	written := make(chan error, 1)
	go func() {
		_, err := upgrade.Write(make([]byte, 256<<20)) // more than all buffers on the way hold
		written <- err
	}()
	blocked := func() bool {
		for _, se := range g.candidates("east", dialer.ForUpgrades) {
			if se.purpose == dialer.ForUpgrades && se.stalled(time.Now(), 100*time.Millisecond) {
				return true
			}
		}
		return false
	}
	dialertest.Eventually(t, "the upload to block the stream", blocked)
	for range 20 {
		mustEcho(t, requests, "while the upgrade is blocked")
	}
	mustEcho(t, mustDialAddress(t, g, endpoint, dialer.ForRequests), "a new connection as well")

	if err := dialertest.Within(t, written, "the blocked upload"); !errors.Is(err, errStalled) {
		t.Errorf("Write: %v, want %v", err, errStalled)
	}
	if err := dialertest.Within(t, readError(neighbor), "the other upgrade"); !errors.Is(err, errStalled) {
		t.Errorf("Read of the other connection of the stream: %v, want %v", err, errStalled)
	}
	g.awaitParked(t, "east", "a")
	mustEcho(t, mustDialAddress(t, g, endpoint, dialer.ForUpgrades), "the agent is back, though the endpoint still does not read")
	mustEcho(t, requests, "and the requests were not affected")
}

// A real agent that drains keeps its connections until it ends. New connections use another agent.
func TestStockAgentDrains(t *testing.T) {
	t.Parallel()
	g := startGateway(t, nil)
	endpoint := echoEndpoint(t)
	a := g.startStockAgent(t, "east", "going")
	c := mustDialAddress(t, g, endpoint, dialer.ForRequests)
	g.startStockAgent(t, "east", "staying")
	a.Drain()
	mustEcho(t, c, "the agent looks at the signal between two packets")
	mustEcho(t, c, "and reports it on this one of its streams")
	for purpose := range dialer.Purposes {
		for i, se := range g.candidates("east", purpose) {
			if going := se.agentID == `"going"`; going != (i >= 2) {
				t.Errorf("candidate %d for %s is a stream of agent %s", i, purpose, se.agentID)
			}
		}
	}
	a.Stop()
	g.awaitStreams(t, "east", "going", 0)
	mustEcho(t, mustDialAddress(t, g, endpoint, dialer.ForRequests), "through the agent that stays")
}

// A stock agent that begins to drain while its streams are quiet reports it with the next dial.
// That dial then uses another agent.
func TestQuietAgentDrains(t *testing.T) {
	t.Parallel()
	for name, purpose := range map[string]dialer.Purpose{"requests": dialer.ForRequests, "upgrades": dialer.ForUpgrades} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := startGateway(t, nil)
			endpoint := echoEndpoint(t)
			going := g.startStockAgent(t, "east", "going")
			mustEcho(t, mustDialAddress(t, g, endpoint, purpose), "an agent alone")
			g.startStockAgent(t, "east", "staying")
			going.Drain()
			const dials = 6
			for range dials {
				mustEcho(t, mustDialAddress(t, g, endpoint, purpose), "another agent")
			}
			open := map[string]int{}
			for _, se := range g.candidates("east", purpose) {
				open[se.agentID] += se.open()
			}
			if want := map[string]int{`"going"`: 1, `"staying"`: dials}; !maps.Equal(open, want) {
				t.Errorf("connections by agent: %v, want %v", open, want)
			}
		})
	}
}

// If all agents drain, they are used all the same. Both report it only when they are asked to dial.
func TestAllQuietAgentsDrain(t *testing.T) {
	t.Parallel()
	g := startGateway(t, nil)
	endpoint := echoEndpoint(t)
	g.startStockAgent(t, "east", "a").Drain()
	g.startStockAgent(t, "east", "b").Drain()
	for range 4 {
		mustEcho(t, mustDialAddress(t, g, endpoint, dialer.ForUpgrades), "a draining agent is better than none")
	}
}

// When an agent ends, its connections end with an error and dials fail. When it connects again, it
// gets both streams again.
func TestAgentComesBack(t *testing.T) {
	t.Parallel()
	g := startGateway(t, nil)
	endpoint := echoEndpoint(t)
	a := g.startStockAgent(t, "east", "a")
	c := mustDialAddress(t, g, endpoint, dialer.ForRequests)
	a.Stop()
	if err := dialertest.Within(t, readError(c), "Read"); err == nil {
		t.Error("the end of the agent looks like a clean end of the connection")
	}
	g.awaitStreams(t, "east", "a", 0)
	var none *dialer.NoAgentError
	d := g.Dialer("east", endpoint, dialer.ForRequests)
	if _, err := d.DialContext(t.Context(), "tcp", endpoint); !errors.As(err, &none) || none.LastSeen.IsZero() {
		t.Errorf("%v, want NoAgentError with the time", err)
	}
	g.startStockAgent(t, "east", "a")
	mustEcho(t, mustDialAddress(t, g, endpoint, dialer.ForRequests), "back")
}

// echoEndpoint returns the address of a server that echoes.
func echoEndpoint(t testing.TB) string {
	t.Helper()
	lis := dialertest.Listen(t)
	go func() {
		for {
			c, err := lis.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
	return lis.Addr().String()
}

func mustDialAddress(t testing.TB, g *gateway, address string, purpose dialer.Purpose) net.Conn {
	t.Helper()
	d := g.Dialer("east", address, purpose)
	t.Cleanup(func() { _ = d.Close() })
	c, err := d.DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return c
}
