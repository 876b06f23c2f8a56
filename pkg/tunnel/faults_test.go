// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"sigs.k8s.io/apiserver-network-proxy/konnectivity-client/proto/client"

	"github.com/oam-dev/cluster-gateway/pkg/dialer"
)

func TestAgentDiesMidDial(t *testing.T) {
	g := startGateway(t, nil)
	first := g.connect(t, "east", "a")
	d := g.dialer(t, "east", dialer.ForRequests)

	alone := goDial(t.Context(), d)
	first.expect(client.PacketType_DIAL_REQ)
	first.kill()
	var de *dialer.Error
	if got := within(t, alone, "the dial"); !errors.As(got.err, &de) || de.Stage != dialer.StageAgent || !errors.Is(got.err, errAgentGone) {
		t.Errorf("%v; want the agent's end at stage agent", got.err)
	}
	eventually(t, "the table", func() bool { return g.streams("east", "a") == 0 })

	// With another agent there, the caller does not notice. The two take turns, so one of two dials comes to the dying one.
	dying := g.connect(t, "east", "dying")
	asked := packetFor(dying)
	g.connect(t, "east", "living").goEcho(nil)
	for range 2 {
		got := goDial(t.Context(), d)
		select {
		case r := <-got:
			if r.err != nil {
				t.Fatal(r.err)
			}
		case <-asked:
			dying.kill()
			if r := within(t, got, "the dial"); r.err != nil {
				t.Errorf("with another agent connected: %v", r.err)
			}
			return
		}
	}
	t.Error("no dial came to the dying agent")
}

// packetFor is closed when the agent has received a packet, or its end.
func packetFor(a *fakeAgent) <-chan struct{} {
	out := make(chan struct{})
	go func() {
		defer close(out)
		_, _ = a.stream.Recv()
	}()
	return out
}

func TestAgentDiesMidConnection(t *testing.T) {
	g := startGateway(t, nil)
	a := g.connect(t, "east", "a").goEcho(nil)
	c := mustDial(t, g.dialer(t, "east", dialer.ForRequests))
	mustEcho(t, c, "alive")
	read := readError(c)
	a.kill()
	if err := within(t, read, "Read"); !errors.Is(err, errAgentGone) {
		t.Errorf("Read: %v; want the agent's end, not a clean one", err)
	}
	if _, err := c.Write([]byte("x")); err == nil {
		t.Error("Write succeeds")
	}
}

// An agent that takes dials and never answers is passed over after attemptTimeout, and from then on asked last.
func TestSilentAgent(t *testing.T) {
	g := startGateway(t, func(c *Config) { c.attemptTimeout = 2 * time.Second }) // once; the one that answers must never take as long
	silent := g.connect(t, "east", "silent")
	answering := g.connect(t, "east", "answering")
	if silent.lane != dialer.ForRequests || answering.lane != dialer.ForRequests {
		t.Fatalf("lanes %d and %d, want the first of each agent's to be for requests", silent.lane, answering.lane)
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

// requests returns the dials that the agent has been sent so far. The agent is spent afterwards.
func requests(a *fakeAgent) (all []*client.DialRequest) {
	a.t.Helper()
	if err := a.stream.CloseSend(); err != nil { // the gateway then ends the stream, after what it has sent
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
func TestImpatientCaller(t *testing.T) {
	g := startGateway(t, nil)
	a := g.connect(t, "east", "a")
	ctx, cancel := context.WithCancel(t.Context())
	got := goDial(ctx, g.dialer(t, "east", dialer.ForRequests))
	random := a.expect(client.PacketType_DIAL_REQ).GetDialRequest().GetRandom()
	cancel()
	if r := within(t, got, "the dial"); !errors.Is(r.err, context.Canceled) {
		t.Errorf("%v, want the context's end", r.err)
	}
	candidates, _ := g.candidates("east", dialer.ForRequests)
	if _, _, unanswered := candidates[0].load(); unanswered {
		t.Error("the agent counts as silent")
	}
	// The answer comes too late: the connection is closed again.
	a.send(dialResponse(random, 5, ""))
	if id := a.expect(client.PacketType_CLOSE_REQ).GetCloseRequest().GetConnectID(); id != 5 {
		t.Errorf("connection %d was closed, want 5", id)
	}
}

func TestDrainingAgent(t *testing.T) {
	g := startGateway(t, nil)
	draining, staying := g.connect(t, "east", "draining"), g.connect(t, "east", "staying")
	dials := make(chan string, 100)
	staying.goEcho(dials)
	d := g.dialer(t, "east", dialer.ForRequests)
	drain := &client.Packet{Type: client.PacketType_DRAIN, Payload: &client.Packet_Drain{Drain: &client.Drain{}}}
	draining.send(drain, drain, data(9, nil))
	draining.expect(client.PacketType_CLOSE_REQ) // of 9: what came before it has been handled
	for range 10 {
		mustDial(t, d)
	}
	if len(dials) != 10 {
		t.Errorf("the agent that stays got %d dials of 10", len(dials))
	}
	// Better a draining agent than none.
	staying.kill()
	eventually(t, "the table", func() bool { return g.streams("east", "staying") == 0 })
	got := goDial(t.Context(), d)
	draining.accept(1)
	if r := within(t, got, "the dial"); r.err != nil {
		t.Error(r.err)
	}
}

// Who has connections through an agent that drains is told once, and when there is another agent to take them.
func TestAgentLeaving(t *testing.T) {
	told := make(chan string, 10)
	g := startGateway(t, func(c *Config) {
		c.watchInterval = time.Hour // the test says when
	}, func(s *Server) {
		s.OnAgentLeaving(func(cluster string) { told <- cluster })
	})
	draining := g.connect(t, "east", "draining")
	d := g.dialer(t, "east", dialer.ForRequests)
	got := goDial(t.Context(), d)
	draining.accept(1)
	within(t, got, "the dial")
	drain := &client.Packet{Type: client.PacketType_DRAIN, Payload: &client.Packet_Drain{Drain: &client.Drain{}}}
	draining.send(drain, data(9, nil))
	draining.expect(client.PacketType_CLOSE_REQ) // of 9: what came before it has been handled
	look := func(want int) {
		t.Helper()
		g.tellLeaving()
		if len(told) != want {
			t.Errorf("told %d times, want %d", len(told), want)
		}
	}
	look(0) // there is nowhere to go
	staying := g.connect(t, "east", "staying")
	g.connect(t, "west", "other")
	look(1)
	look(1)
	if name := <-told; name != "east" {
		t.Errorf("told of %q", name)
	}
	// What is dialled through it for want of another is to move as well.
	staying.kill()
	eventually(t, "the table", func() bool { return g.streams("east", "staying") == 0 })
	got = goDial(t.Context(), d)
	draining.accept(2)
	within(t, got, "the dial")
	g.connect(t, "east", "next")
	look(1)
}

func TestLoadIsSpread(t *testing.T) {
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

// An agent that says that it cannot reach the address is not asked the same on its other stream; another agent is.
func TestEndpointFailure(t *testing.T) {
	g := startGateway(t, nil)
	var refusals sync.WaitGroup
	var asked [4]int
	for i := range asked {
		a := g.connect(t, "east", fmt.Sprint("agent-", i/2))
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
		t.Errorf("%v; want the agent's words at stage endpoint", err)
	}
	g.stop()
	refusals.Wait()
	if asked[0]+asked[1] != 1 || asked[2]+asked[3] != 1 {
		t.Errorf("the streams were asked %v times, want each agent once", asked)
	}
}

// Garbage ends at most the stream that it came over.
func TestGarbage(t *testing.T) {
	g := startGateway(t, nil)
	good := g.connect(t, "east", "good").goEcho(nil)
	_ = good
	c := mustDial(t, g.dialer(t, "east", dialer.ForRequests))
	for name, packets := range map[string][]*client.Packet{
		"empty": {{}},
		"nil payloads": {
			{Type: client.PacketType_DIAL_RSP}, {Type: client.PacketType_DIAL_CLS}, {Type: client.PacketType_DATA},
			{Type: client.PacketType_CLOSE_RSP}, {Type: client.PacketType_DRAIN}, {Type: client.PacketType_CLOSE_REQ},
		},
		"payload of another type": {
			{Type: client.PacketType_DATA, Payload: &client.Packet_CloseResponse{CloseResponse: &client.CloseResponse{ConnectID: 1}}},
			{Type: client.PacketType_CLOSE_RSP, Payload: &client.Packet_Data{Data: &client.Data{ConnectID: 1}}},
		},
		"unknown type":  {{Type: 77}, {Type: -1}},
		"negative IDs":  {data(-1, []byte("x")), closeResponse(-1, ""), dialResponse(-1, -1, ""), dialResponse(-9, -1, "no")},
		"gateway's own": {{Type: client.PacketType_DIAL_REQ, Payload: &client.Packet_DialRequest{DialRequest: &client.DialRequest{Protocol: "tcp", Address: "127.0.0.1:22"}}}},
		"many unknown":  slices.Repeat([]*client.Packet{data(12, []byte("x"))}, 5000),
	} {
		t.Run(name, func(t *testing.T) {
			bad := g.connect(t, "west", "bad")
			bad.goDiscard()
			bad.send(packets...)
			// It is still served: the stream was in order, and nothing hangs.
			mustEcho(t, c, "east is not concerned")
			bad.kill()
		})
	}
	t.Run("duplicate connection ID", func(t *testing.T) {
		bad := g.connect(t, "west", "duplicate")
		d := g.dialer(t, "west", dialer.ForRequests)
		first := goDial(t.Context(), d)
		bad.accept(3)
		within(t, first, "the first dial")
		second := goDial(t.Context(), d)
		bad.accept(3)
		if r := within(t, second, "the second dial"); !errors.Is(r.err, errProtocol) {
			t.Errorf("%v, want %v", r.err, errProtocol)
		}
		if err := bad.end(); status.Code(err) != codes.InvalidArgument {
			t.Errorf("the stream ended with %v, want InvalidArgument", err)
		}
		mustEcho(t, c, "east is not concerned")
	})
}

// goDiscard takes what the gateway sends.
func (a *fakeAgent) goDiscard() {
	done := make(chan struct{})
	go func() { defer close(done); _ = a.end() }()
	a.t.Cleanup(func() { a.kill(); within(a.t, done, "the fake agent") })
}

// An agent that never confirms that connections are closed does not make its session grow for ever.
func TestUnconfirmedCloses(t *testing.T) {
	g := startGateway(t, nil)
	a := g.connect(t, "east", "a")
	go func() {
		for id := int64(1); ; {
			p, err := a.stream.Recv()
			if err != nil {
				return
			}
			if p.GetType() == client.PacketType_DIAL_REQ {
				if a.stream.Send(dialResponse(p.GetDialRequest().GetRandom(), id, "")) != nil {
					return
				}
				id++
			}
		}
	}()
	d := g.Dialer("east", apiServer, dialer.ForRequests)
	for i := range 2 * maxClosing {
		c, err := d.DialContext(t.Context(), "tcp", apiServer)
		if err != nil {
			if i < maxClosing {
				t.Errorf("after %d: %v", i, err)
			}
			return
		}
		_ = c.Close()
	}
	t.Error("the session grows")
}

// A consumer that never reads loses its connection when its buffer is full; another of the same stream goes on.
func TestBufferFull(t *testing.T) {
	const limit = 1 << 20
	g := startGateway(t, func(c *Config) { c.ReceiveBuffer = limit })
	a := g.connect(t, "east", "a")
	d := g.dialer(t, "east", dialer.ForRequests)
	first := goDial(t.Context(), d)
	a.accept(1)
	stuck := within(t, first, "the first dial").conn
	second := goDial(t.Context(), d)
	a.accept(2)
	lively := within(t, second, "the second dial").conn

	// Interleaved, to the brim: both live, and the lively one gets all of its bytes.
	chunk := bytes.Repeat([]byte("0123456789abcdef"), 256)
	buf := make([]byte, len(chunk))
	exchange := func() {
		t.Helper()
		a.send(data(1, chunk), data(2, chunk))
		if err := lively.SetReadDeadline(time.Now().Add(hang)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(lively, buf); err != nil || !bytes.Equal(buf, chunk) {
			t.Fatalf("the lively connection: %v", err)
		}
	}
	for range limit / len(chunk) {
		exchange()
	}
	exchange() // one too many for the stuck one
	if id := a.expect(client.PacketType_CLOSE_REQ).GetCloseRequest().GetConnectID(); id != 1 {
		t.Errorf("connection %d was closed, want 1", id)
	}
	if _, err := stuck.Read(buf); !errors.Is(err, dialer.ErrBufferFull) {
		t.Errorf("Read: %v, want ErrBufferFull", err)
	}
	if _, err := stuck.Write(buf); !errors.Is(err, dialer.ErrBufferFull) {
		t.Errorf("Write: %v, want ErrBufferFull", err)
	}
	a.send(closeResponse(1, ""))
	for range 100 {
		exchange() // DATA for 1 is for nobody now
		if id := a.expect(client.PacketType_CLOSE_REQ).GetCloseRequest().GetConnectID(); id != 1 {
			t.Errorf("connection %d was closed, want 1", id)
		}
	}
}

func TestMaxSessions(t *testing.T) {
	g := startGateway(t, nil)
	for i := range maxSessions {
		g.connect(t, "east", fmt.Sprint(i))
	}
	if _, err := g.tryConnect(t, g.tls(t, "east"), "one too many"); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("%v, want ResourceExhausted", err)
	}
	g.connect(t, "west", "another cluster's")
	if n, _ := g.Agents("east"); n != maxSessions {
		t.Errorf("%d agents, want %d", n, maxSessions)
	}
}

// A subscriber of OnAgentsChange may call the server, and is told of changes only, ending with the truth.
func TestAgentsChanged(t *testing.T) {
	type change struct {
		cluster string
		n       int
	}
	changes := make(chan change, 100)
	g := startGateway(t, nil, func(s *Server) {
		s.OnAgentsChange(func(cluster string, n int) {
			s.Agents(cluster)
			changes <- change{cluster, n}
		})
	})
	told := func(n int) {
		t.Helper()
		if got, want := within(t, changes, "OnAgentsChange"), (change{"east", n}); got != want {
			t.Errorf("told %v, want %v", got, want)
		}
	}
	kill := func(a *fakeAgent) {
		left := g.sessionCount()
		a.kill()
		eventually(t, "the table", func() bool { return g.sessionCount() == left-1 })
	}
	// It is told after the table has changed, and what happens meanwhile is told at once: so each change waits for the one before.
	a1 := g.connect(t, "east", "a")
	told(1)
	a2 := g.connect(t, "east", "a")
	b := g.connect(t, "east", "b")
	told(2)
	if a1.lane == a2.lane {
		t.Errorf("both streams of an agent have lane %d", a1.lane)
	}
	kill(a1)
	kill(b)
	told(1)
	kill(a2)
	told(0)
	g.stop()
	if len(changes) != 0 {
		t.Errorf("told %v, too", <-changes)
	}
}

func (g *gateway) sessionCount() int {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return len(g.sessionsLocked())
}

// An agent whose lost stream has not been noticed yet gets, sooner or later, the lane that it misses.
func TestLanesTakeTurns(t *testing.T) {
	c := &clusterSessions{}
	add := func(id string) dialer.Purpose {
		lane := c.laneFor(id)
		c.sessions = append(c.sessions, &session{agentID: id, lane: lane})
		return lane
	}
	if a, b := add("a"), add("a"); a != dialer.ForRequests || b != dialer.ForUpgrades {
		t.Errorf("lanes %d and %d, want each once", a, b)
	}
	seen := map[dialer.Purpose]bool{}
	for range dialer.Purposes {
		seen[c.laneFor("a")] = true
	}
	if len(seen) != int(dialer.Purposes) {
		t.Errorf("only %v in turn", seen)
	}
	if got := add("b"); got != dialer.ForRequests {
		t.Errorf("lane %d, want another agent to begin at the first", got)
	}
}
