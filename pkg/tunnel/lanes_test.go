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

// An upgraded connection whose API server never reads blocks the real agent's stream for upgrades. Ordinary requests go on while it
// does, and the agent comes back.
func TestBlockedUpgrade(t *testing.T) {
	g := startGateway(t, func(c *Config) {
		c.stallTimeout = 2 * time.Second
		c.watchInterval = 20 * time.Millisecond
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
	neighbour := mustDialAddress(t, g, endpoint, dialer.ForUpgrades)
	upgrade := mustDialAddress(t, g, deaf.Addr().String(), dialer.ForUpgrades)
	held := within(t, accepted, "the endpoint")
	defer func() { _ = held.Close() }()

	written := make(chan error, 1)
	go func() {
		_, err := upgrade.Write(make([]byte, 256<<20)) // more than any buffers on the way
		written <- err
	}()
	blocked := func() bool {
		candidates, _ := g.candidates("east", dialer.ForUpgrades)
		for _, se := range candidates {
			if se.lane == dialer.ForUpgrades && se.stalled(time.Now(), 100*time.Millisecond) {
				return true
			}
		}
		return false
	}
	eventually(t, "the upload to block the stream", blocked)
	for range 20 {
		mustEcho(t, requests, "while the upgrade is stuck")
	}
	mustEcho(t, mustDialAddress(t, g, endpoint, dialer.ForRequests), "also a new one")

	if err := within(t, written, "the blocked upload"); !errors.Is(err, errStalled) {
		t.Errorf("Write: %v, want %v", err, errStalled)
	}
	if err := within(t, readError(neighbour), "the other upgrade"); !errors.Is(err, errStalled) {
		t.Errorf("Read of the other connection of the stream: %v, want %v", err, errStalled)
	}
	g.awaitStreams(t, "east", "a", int(dialer.Purposes))
	mustEcho(t, mustDialAddress(t, g, endpoint, dialer.ForUpgrades), "the agent is back, though its endpoint still does not read")
	mustEcho(t, requests, "and the requests never noticed")
}

// The real agent, told to go: what it has stays until it ends, and what is new goes through another.
func TestStockAgentDrains(t *testing.T) {
	g := startGateway(t, nil)
	endpoint := echoEndpoint(t)
	a := g.startStockAgent(t, "east", "going")
	c := mustDialAddress(t, g, endpoint, dialer.ForRequests)
	g.startStockAgent(t, "east", "staying")
	a.Drain()
	mustEcho(t, c, "between two packets it looks at the signal")
	mustEcho(t, c, "and says so, on this one of its streams")
	for lane := range dialer.Purposes {
		candidates, _ := g.candidates("east", lane)
		for i, se := range candidates {
			if going := se.agentID == `"going"`; se.drains() != going || going != (i >= int(dialer.Purposes)) {
				t.Errorf("candidate %d of lane %d is a stream of agent %s, which drains: %t", i, lane, se.agentID, se.drains())
			}
		}
	}
	a.Stop()
	g.awaitStreams(t, "east", "going", 0)
	mustEcho(t, mustDialAddress(t, g, endpoint, dialer.ForRequests), "through the one that stays")
}

// A stock agent that is told to go while its streams are quiet says so with the next dial, which then goes through another agent.
func TestQuietAgentDrains(t *testing.T) {
	for name, lane := range map[string]dialer.Purpose{"requests": dialer.ForRequests, "upgrades": dialer.ForUpgrades} {
		t.Run(name, func(t *testing.T) {
			g := startGateway(t, nil)
			endpoint := echoEndpoint(t)
			going := g.startStockAgent(t, "east", "going")
			mustEcho(t, mustDialAddress(t, g, endpoint, lane), "an agent alone")
			g.startStockAgent(t, "east", "staying")
			going.Drain()
			const dials = 6
			for range dials {
				mustEcho(t, mustDialAddress(t, g, endpoint, lane), "another agent")
			}
			open := map[string]int{}
			candidates, _ := g.candidates("east", lane)
			for _, se := range candidates {
				n, _, _ := se.load()
				open[se.agentID] += n
			}
			if want := map[string]int{`"going"`: 1, `"staying"`: dials}; !maps.Equal(open, want) {
				t.Errorf("connections by agent: %v, want %v", open, want)
			}
		})
	}
}

// Where all agents drain, they are used: both have been asked, and say so only then.
func TestAllQuietAgentsDrain(t *testing.T) {
	g := startGateway(t, nil)
	endpoint := echoEndpoint(t)
	g.startStockAgent(t, "east", "a").Drain()
	g.startStockAgent(t, "east", "b").Drain()
	for range 4 {
		mustEcho(t, mustDialAddress(t, g, endpoint, dialer.ForUpgrades), "better than none")
	}
}

// An agent that comes back after the gateway's restart finds its lanes again.
func TestAgentComesBack(t *testing.T) {
	g := startGateway(t, nil)
	endpoint := echoEndpoint(t)
	a := g.startStockAgent(t, "east", "a")
	c := mustDialAddress(t, g, endpoint, dialer.ForRequests)
	a.Stop()
	if err := within(t, readError(c), "Read"); err == nil {
		t.Error("the end of the agent looks like that of the connection")
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

// echoEndpoint returns the address of an API server that echoes.
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

func mustDialAddress(t testing.TB, g *gateway, address string, lane dialer.Purpose) net.Conn {
	t.Helper()
	d := g.Dialer("east", address, lane)
	t.Cleanup(func() { _ = d.Close() })
	c, err := d.DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return c
}
