// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
	"time"

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
