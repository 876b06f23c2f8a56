// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"bytes"
	"errors"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"sigs.k8s.io/apiserver-network-proxy/konnectivity-client/proto/client"

	"github.com/oam-dev/cluster-gateway/pkg/dialer"
	"github.com/oam-dev/cluster-gateway/pkg/dialer/dialertest"
)

func TestAgentDiesMidConnection(t *testing.T) {
	t.Parallel()
	g := startGateway(t, nil)
	a := g.connect(t, "east", "a").goEcho(nil)
	c := mustDial(t, g.dialer(t, "east", dialer.ForRequests))
	mustEcho(t, c, "alive")
	read := readError(c)
	a.kill()
	if err := dialertest.Within(t, read, "Read"); !errors.Is(err, errAgentGone) {
		t.Errorf("Read: %v; want the end of the agent, not a clean end", err)
	}
	if _, err := c.Write([]byte("x")); err == nil {
		t.Error("Write succeeds")
	}
}

// Invalid packets end at most the stream on which they arrive.
func TestGarbage(t *testing.T) {
	t.Parallel()
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
		"unknown type":            {{Type: 77}, {Type: -1}},
		"negative IDs":            {data(-1, []byte("x")), closeResponse(-1, ""), dialResponse(-1, -1, ""), dialResponse(-9, -1, "no")},
		"a packet of the gateway": {{Type: client.PacketType_DIAL_REQ, Payload: &client.Packet_DialRequest{DialRequest: &client.DialRequest{Protocol: "tcp", Address: "127.0.0.1:22"}}}},
		"many unknown IDs":        slices.Repeat([]*client.Packet{data(12, []byte("x"))}, 5000),
	} {
		t.Run(name, func(t *testing.T) {
			bad := g.connect(t, "west", "bad")
			bad.goDiscard()
			bad.send(packets...)
			// The other stream works and nothing hangs.
			mustEcho(t, c, "east is not affected")
			bad.kill()
		})
	}
	t.Run("duplicate connection ID", func(t *testing.T) {
		bad := g.connect(t, "west", "duplicate")
		d := g.dialer(t, "west", dialer.ForRequests)
		first := goDial(t.Context(), d)
		bad.accept(3)
		dialertest.Within(t, first, "the first dial")
		second := goDial(t.Context(), d)
		bad.accept(3)
		if r := dialertest.Within(t, second, "the second dial"); !errors.Is(r.err, errProtocol) {
			t.Errorf("%v, want %v", r.err, errProtocol)
		}
		if err := bad.end(); status.Code(err) != codes.InvalidArgument {
			t.Errorf("the stream ended with %v, want InvalidArgument", err)
		}
		mustEcho(t, c, "east is not affected")
	})
}

// goDiscard receives and discards packets in the background until the end of the test.
func (a *fakeAgent) goDiscard() {
	done := make(chan struct{})
	go func() { defer close(done); _ = a.end() }()
	a.t.Cleanup(func() { a.kill(); dialertest.Within(a.t, done, "the fake agent") })
}

// An agent that never confirms the end of connections cannot make its session grow forever.
func TestUnconfirmedCloses(t *testing.T) {
	t.Parallel()
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
	t.Error("the session grows without bound")
}

// A client that never reads loses its connection when its buffer is full. Another connection of the
// same stream keeps working.
func TestBufferFull(t *testing.T) {
	t.Parallel()
	const limit = 1 << 20
	g := startGateway(t, func(c *Config) { c.ReceiveBuffer = limit })
	a := g.connect(t, "east", "a")
	d := g.dialer(t, "east", dialer.ForRequests)
	first := goDial(t.Context(), d)
	a.accept(1)
	stuck := dialertest.Within(t, first, "the first dial").conn
	second := goDial(t.Context(), d)
	a.accept(2)
	reading := dialertest.Within(t, second, "the second dial").conn

	// Fill the buffer exactly: both connections work, and the one that is read gets all of its bytes.
	chunk := bytes.Repeat([]byte("0123456789abcdef"), 256)
	buf := make([]byte, len(chunk))
	exchange := func() {
		t.Helper()
		a.send(data(1, chunk), data(2, chunk))
		if err := reading.SetReadDeadline(time.Now().Add(dialertest.HangTimeout)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(reading, buf); err != nil || !bytes.Equal(buf, chunk) {
			t.Fatalf("the reading connection: %v", err)
		}
	}
	for range limit / len(chunk) {
		exchange()
	}
	exchange() // one packet too many for the stuck connection
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
		exchange() // data for 1 has no connection any more
		if id := a.expect(client.PacketType_CLOSE_REQ).GetCloseRequest().GetConnectID(); id != 1 {
			t.Errorf("connection %d was closed, want 1", id)
		}
	}
}

// All connections of a cluster share one budget, through whichever Dialer they were opened. Four
// full buffers fit into it. Another cluster is not affected.
func TestBudgetOfCluster(t *testing.T) {
	t.Parallel()
	const limit = 2 << 20
	g := startGateway(t, func(c *Config) { c.ReceiveBuffer = limit })
	east, west := g.connect(t, "east", "a"), g.connect(t, "west", "a")
	chunk := make([]byte, 64<<10)
	// fill opens a connection that nobody reads, and fills its buffer. The agent gets a close request
	// for it if that is too much.
	fill := func(a *fakeAgent, d dialer.Dialer, id int64) net.Conn {
		t.Helper()
		dial := goDial(t.Context(), d)
		a.accept(id)
		got := dialertest.Within(t, dial, "the dial")
		if got.err != nil {
			t.Fatal(got.err)
		}
		for range limit / len(chunk) {
			a.send(data(id, chunk))
		}
		return got.conn
	}
	requests, upgrades := g.dialer(t, "east", dialer.ForRequests), g.dialer(t, "east", dialer.ForUpgrades)
	for id := int64(1); id <= 4; id++ {
		fill(east, []dialer.Dialer{requests, upgrades}[id%2], id)
	}
	fill(east, upgrades, 5)
	if id := east.expect(client.PacketType_CLOSE_REQ).GetCloseRequest().GetConnectID(); id != 5 {
		t.Errorf("connection %d was closed, want 5: the budget is not the cluster's", id)
	}
	other := fill(west, g.dialer(t, "west", dialer.ForUpgrades), 1)
	if _, err := io.ReadFull(other, make([]byte, limit)); err != nil {
		t.Errorf("the connection of another cluster: %v", err)
	}
}
