// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"testing"
	"time"

	"sigs.k8s.io/apiserver-network-proxy/konnectivity-client/proto/client"

	"github.com/oam-dev/cluster-gateway/pkg/dialer"
	"github.com/oam-dev/cluster-gateway/pkg/dialer/dialertest"
)

// New dials use an agent that does not drain. If there is none, they use a draining agent.
func TestDrainingAgent(t *testing.T) {
	t.Parallel()
	g := startGateway(t, nil)
	draining, staying := g.connect(t, "east", "draining"), g.connect(t, "east", "staying")
	dials := make(chan string, 100)
	staying.goEcho(dials)
	d := g.dialer(t, "east", dialer.ForRequests)
	drain := &client.Packet{Type: client.PacketType_DRAIN, Payload: &client.Packet_Drain{Drain: &client.Drain{}}}
	draining.send(drain, drain, data(9, nil))
	draining.expect(client.PacketType_CLOSE_REQ) // for connection 9: the packets before it have been handled
	for range 10 {
		mustDial(t, d)
	}
	if len(dials) != 10 {
		t.Errorf("the agent that stays got %d of 10 dials", len(dials))
	}
	// A draining agent is better than none.
	staying.kill()
	dialertest.Eventually(t, "the table", func() bool { return g.streams("east", "staying") == 0 })
	got := goDial(t.Context(), d)
	draining.accept(1)
	if r := dialertest.Within(t, got, "the dial"); r.err != nil {
		t.Error(r.err)
	}
}

// Connections through a draining agent are reported once, when there is another agent to take them.
func TestAgentLeaving(t *testing.T) {
	t.Parallel()
	leaving := make(chan string, 10)
	g := startGateway(t, func(c *Config) {
		c.checkInterval = time.Hour // the test calls reportLeaving
	}, func(s *Server) {
		s.OnAgentLeaving(func(cluster string) { leaving <- cluster })
	})
	draining := g.connect(t, "east", "draining")
	d := g.dialer(t, "east", dialer.ForRequests)
	got := goDial(t.Context(), d)
	draining.accept(1)
	dialertest.Within(t, got, "the dial")
	drain := &client.Packet{Type: client.PacketType_DRAIN, Payload: &client.Packet_Drain{Drain: &client.Drain{}}}
	draining.send(drain, data(9, nil))
	draining.expect(client.PacketType_CLOSE_REQ) // for connection 9: the packets before it have been handled
	report := func(want int) {
		t.Helper()
		g.reportLeaving()
		if len(leaving) != want {
			t.Errorf("%d reports, want %d", len(leaving), want)
		}
	}
	report(0) // there is no other agent
	staying := g.connect(t, "east", "staying")
	g.connect(t, "west", "other")
	report(1)
	report(1)
	if name := <-leaving; name != "east" {
		t.Errorf("the report is about %q, want east", name)
	}
	// A connection that was opened through it while there was no other agent is reported as well.
	staying.kill()
	dialertest.Eventually(t, "the table", func() bool { return g.streams("east", "staying") == 0 })
	got = goDial(t.Context(), d)
	draining.accept(2)
	dialertest.Within(t, got, "the dial")
	g.connect(t, "east", "next")
	report(1)
}
