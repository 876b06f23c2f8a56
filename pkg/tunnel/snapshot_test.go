// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"errors"
	"io"
	"testing"
	"time"

	"github.com/oam-dev/cluster-gateway/pkg/dialer"
	"github.com/oam-dev/cluster-gateway/pkg/dialer/dialertest"
)

// TestSnapshot reads the state of a cluster with two agents, of which one carries a connection, and
// of one whose agent has gone.
func TestSnapshot(t *testing.T) {
	t.Parallel()
	began := time.Now()
	g := startGateway(t, nil)
	if got := g.Snapshot(); got == nil || len(got) != 0 {
		t.Errorf("without agents: %+v, want an empty list", got)
	}
	g.startStockAgent(t, "east", "b")
	c := mustDialAddress(t, g, echoEndpoint(t), dialer.ForRequests)
	const text = "hello"
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, len(text))); err != nil {
		t.Fatal(err)
	}
	g.startStockAgent(t, "east", "a")
	gone := g.startStockAgent(t, "west", "gone")
	gone.Stop()
	dialertest.Eventually(t, "the agent to be gone", func() bool { n, _ := g.Agents("west"); return n == 0 && g.parked("west", "gone") == 0 })

	got := g.Snapshot()
	if len(got) != 2 || got[0].Cluster != "east" || got[1].Cluster != "west" {
		t.Fatalf("the clusters are %+v", got)
	}
	if west := got[1]; len(west.Agents) != 0 || west.LastSeen.Before(began) {
		t.Errorf("a cluster without agents: %+v", west)
	}
	east := got[0].Agents
	if len(east) != 2 || east[0].Name != "a" || east[1].Name != "b" {
		t.Fatalf("the agents are %+v", east)
	}
	for _, a := range east {
		if a.Since.Before(began) || a.Since.After(time.Now()) || a.CertificateExpires.Before(time.Now()) || a.Streams.Parked != 1 || a.Draining || a.Failing || a.LastError != "" {
			t.Errorf("the agent %+v", a)
		}
	}
	if a, b := east[0], east[1]; a.Connections != 0 || a.BytesReceived != 0 || b.Connections != 1 || b.BytesReceived != int64(len(text)) || b.BytesSent != int64(len(text)) || b.Streams.Requests != 1 {
		t.Errorf("the agents are %+v and %+v", a, b)
	}

	for _, se := range g.candidates("east", dialer.ForRequests) {
		if se.agent.name() == "b" {
			se.agent.failed(errors.New("the TLS handshake failed"), 1)
			se.agent.succeeded()
		}
	}
	if b := g.Snapshot()[0].Agents[1]; b.LastError != "the TLS handshake failed" || b.LastErrorAt.Before(began) {
		t.Errorf("after a failure that is over: %+v", b)
	}
}
