// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"sigs.k8s.io/apiserver-network-proxy/konnectivity-client/proto/client"

	"github.com/oam-dev/cluster-gateway/pkg/dialer"
	"github.com/oam-dev/cluster-gateway/pkg/dialer/dialertest"
)

func TestAgentDiesMidDial(t *testing.T) {
	t.Parallel()
	g := startGateway(t, nil)
	first := g.connect(t, "east", "a")
	d := g.dialer(t, "east", dialer.ForRequests)

	alone := goDial(t.Context(), d)
	first.expect(client.PacketType_DIAL_REQ)
	first.kill()
	var de *dialer.Error
	if got := dialertest.Within(t, alone, "the dial"); !errors.As(got.err, &de) || de.Stage != dialer.StageAgent || !errors.Is(got.err, errAgentGone) {
		t.Errorf("%v; want the end of the agent at stage agent", got.err)
	}
	dialertest.Eventually(t, "the table", func() bool { return g.streams("east", "a") == 0 })

	// With another agent, the caller does not notice. The two take turns, so one of two dials
	// reaches the dying one.
	dying := g.connect(t, "east", "dying")
	asked := packetFor(dying)
	g.connect(t, "east", "alive").goEcho(nil)
	for range 2 {
		got := goDial(t.Context(), d)
		select {
		case r := <-got:
			if r.err != nil {
				t.Fatal(r.err)
			}
		case <-asked:
			dying.kill()
			if r := dialertest.Within(t, got, "the dial"); r.err != nil {
				t.Errorf("with another agent connected: %v", r.err)
			}
			return
		}
	}
	t.Error("no dial reached the dying agent")
}

// packetFor returns a channel that is closed when the agent receives a packet or the end of its
// stream.
func packetFor(a *fakeAgent) <-chan struct{} {
	out := make(chan struct{})
	go func() {
		defer close(out)
		_, _ = a.stream.Recv()
	}()
	return out
}

// An agent that never answers a dial is given up after attemptTimeout. From then on it is asked
// last.
func TestSilentAgent(t *testing.T) {
	t.Parallel()
	// It passes once. The agent that answers must never take that long.
	g := startGateway(t, func(c *Config) { c.attemptTimeout = 2 * time.Second })
	silent := g.connect(t, "east", "silent")
	answering := g.connect(t, "east", "answering")
	if silent.purpose != dialer.ForRequests || answering.purpose != dialer.ForRequests {
		t.Fatalf("purposes %s and %s, want the first stream of each agent to be for requests", silent.purpose, answering.purpose)
	}
	dials := make(chan string, 100)
	answering.goEcho(dials)
	d := g.dialer(t, "east", dialer.ForRequests)
	const n = 10
	for range n {
		mustDial(t, d)
	}
	if len(dials) != n {
		t.Errorf("the agent that answers took %d dials, want %d", len(dials), n)
	}
	if got := len(requests(silent)); got != 1 {
		t.Errorf("the silent agent was asked %d times, want once", got)
	}
}

// requests returns the dial requests that the agent has received so far. It ends the agent's
// stream.
func requests(a *fakeAgent) (all []*client.DialRequest) {
	a.t.Helper()
	if err := a.stream.CloseSend(); err != nil { // the gateway then ends the stream after the packets that it has sent
		a.t.Fatal(err)
	}
	for {
		p, err := a.stream.Recv()
		if err != nil {
			return all
		}
		if p.GetType() == client.PacketType_DIAL_REQ {
			all = append(all, p.GetDialRequest())
		}
	}
}

// A caller that gives up early says nothing about the agent.
func TestCallerGivesUpEarly(t *testing.T) {
	t.Parallel()
	g := startGateway(t, nil)
	a := g.connect(t, "east", "a")
	ctx, cancel := context.WithCancel(t.Context())
	got := goDial(ctx, g.dialer(t, "east", dialer.ForRequests))
	random := a.expect(client.PacketType_DIAL_REQ).GetDialRequest().GetRandom()
	cancel()
	if r := dialertest.Within(t, got, "the dial"); !errors.Is(r.err, context.Canceled) {
		t.Errorf("%v, want the end of the context", r.err)
	}
	if g.candidates("east", dialer.ForRequests)[0].unanswered.Load() {
		t.Error("the agent counts as one that does not answer")
	}
	// The answer is too late, so the connection is closed.
	a.send(dialResponse(random, 5, ""))
	if id := a.expect(client.PacketType_CLOSE_REQ).GetCloseRequest().GetConnectID(); id != 5 {
		t.Errorf("connection %d was closed, want 5", id)
	}
}

func TestLoadIsSpread(t *testing.T) {
	t.Parallel()
	g := startGateway(t, nil)
	const agents, each = 4, 5
	dials := make([]chan string, agents)
	for i := range dials {
		dials[i] = make(chan string, 100)
		g.connect(t, "east", fmt.Sprint("agent-", i)).goEcho(dials[i])
	}
	d := g.dialer(t, "east", dialer.ForRequests)
	for range agents * each {
		mustDial(t, d)
	}
	for i := range dials {
		if got := len(dials[i]); got != each {
			t.Errorf("agent %d got %d dials, want %d", i, got, each)
		}
	}
}

// If an agent answers that it cannot reach the address, its other stream is not asked. Another
// agent is.
func TestEndpointFailure(t *testing.T) {
	t.Parallel()
	g := startGateway(t, nil)
	var refusals sync.WaitGroup
	var asked [4]int
	for i := range asked {
		open := g.connect
		if i%2 == 1 {
			open = g.park
		}
		a := open(t, "east", fmt.Sprint("agent-", i/2))
		refusals.Add(1)
		go func() {
			defer refusals.Done()
			for {
				p, err := a.stream.Recv()
				if err != nil {
					return
				}
				if p.GetType() != client.PacketType_DIAL_REQ {
					continue
				}
				asked[i]++
				if a.stream.Send(dialResponse(p.GetDialRequest().GetRandom(), 0, "connection refused")) != nil {
					return
				}
			}
		}()
	}
	_, err := g.dialer(t, "east", dialer.ForRequests).DialContext(t.Context(), "tcp", apiServer)
	var de *dialer.Error
	if !errors.As(err, &de) || de.Stage != dialer.StageEndpoint || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("%v; want the agent's error at stage endpoint", err)
	}
	g.stop()
	refusals.Wait()
	if asked[0]+asked[1] != 1 || asked[2]+asked[3] != 1 {
		t.Errorf("the streams were asked %v times, want each agent once", asked)
	}
}
