// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package dialer_test

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"

	"github.com/oam-dev/cluster-gateway/pkg/dialer"
)

// packetSize divides the buffer sizes of these tests.
const packetSize = 64 << 10

// fill delivers n bytes, and returns how many of them the connection holds.
func fill(t *testing.T, c *dialer.BufferedConn, n int) int {
	t.Helper()
	for held := 0; held < n; held += packetSize {
		if err := c.Deliver(make([]byte, packetSize)); err != nil {
			if !errors.Is(err, dialer.ErrBufferFull) {
				t.Fatal(err)
			}
			return 0
		}
	}
	return n
}

// Connections that nobody reads share one bound. A connection that is read keeps working beside
// them.
func TestBudget(t *testing.T) {
	t.Parallel()
	const each = 4 << 20
	budget := dialer.NewBudget(each, &dialer.Blocks{})
	var stuck []*dialer.BufferedConn
	held := 0
	for range 40 {
		c := newBudgetedConn(each, budget)
		stuck = append(stuck, c)
		held += fill(t, c, each)
	}
	// Four full buffers, and nothing of the connections that came later.
	if want := 4 * each; held != want {
		t.Errorf("40 connections that nobody reads hold %d bytes, want %d", held, want)
	}
	reading := newBudgetedConn(each, budget)
	buf := make([]byte, packetSize)
	for range 100 {
		if err := reading.Deliver(make([]byte, packetSize)); err != nil {
			t.Fatalf("a connection that is read: %v", err)
		}
		if _, err := io.ReadFull(reading, buf); err != nil {
			t.Fatal(err)
		}
	}
	// Bytes that have been read, or whose connection was closed, no longer count.
	for _, c := range stuck {
		_ = c.Close()
	}
	if got := fill(t, newBudgetedConn(each, budget), each); got != each {
		t.Error("the budget is still used up after the other connections were closed")
	}
}

// All Dialers of one cluster share one budget, also after one of them was closed and made again.
// Another cluster has its own budget.
func TestBudgetOfCluster(t *testing.T) {
	t.Parallel()
	const each = 2 << 20
	budgets := dialer.NewBudgets(each, nil)
	// dial opens a connection, fills its buffer, and reports whether that was possible.
	dial := func(d dialer.Dialer) bool {
		t.Helper()
		c, err := d.DialContext(t.Context(), "tcp", registered)
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Write([]byte("fill me"))
		return !errors.Is(err, dialer.ErrBufferFull)
	}
	open := func(cluster string) dialer.Dialer {
		d := budgets.Dialer(cluster, func(_ context.Context, _, _ string, budget *dialer.Budget) (net.Conn, error) {
			c := newBudgetedConn(each, budget)
			fill(t, c, each)
			return c, nil
		})
		t.Cleanup(func() {
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		})
		return d
	}
	requests, upgrades := open("east"), open("east")
	for i, d := range []dialer.Dialer{requests, upgrades, requests, upgrades} {
		if !dial(d) {
			t.Fatalf("connection %d of 4 does not fit into the budget", i+1)
		}
	}
	if dial(requests) || dial(upgrades) {
		t.Error("a cluster has more than one budget")
	}
	if !dial(open("west")) {
		t.Error("another cluster has no budget of its own")
	}

	// Half of the budget is free again after one of two dialers was closed.
	if err := requests.Close(); err != nil {
		t.Fatal(err)
	}
	again := open("east")
	for range 2 {
		if !dial(again) {
			t.Error("what the connections of a closed dialer held still counts")
		}
	}
	if dial(again) {
		t.Error("a new dialer does not share the budget of the one that is still open")
	}
	// Closing twice gives up one share only.
	if err := requests.Close(); err != nil {
		t.Fatal(err)
	}
	if dial(open("east")) {
		t.Error("a second Close gave up the share of another dialer")
	}
}

// limitedMemory is a dialer.Memory for all clusters together.
type limitedMemory struct{ limit, used int64 }

func (m *limitedMemory) Take(_ string, n int64) bool {
	if m.used+n > m.limit {
		return false
	}
	m.used += n
	return true
}

func (m *limitedMemory) Give(_ string, n int64) { m.used -= n }

// TestBudgetsShareMemory checks that what connections hold beyond their minimum is taken from the
// memory that all clusters share, and given back when it is read or dropped.
func TestBudgetsShareMemory(t *testing.T) {
	t.Parallel()
	const each = 4 * dialer.MinReceiveBuffer
	m := &limitedMemory{limit: 4 * dialer.MinReceiveBuffer}
	budgets := dialer.NewBudgets(each, m)
	read, dropped, full := newBudgetedConn(each, budgets.Separate("a")), newBudgetedConn(each, budgets.Separate("b")), newBudgetedConn(each, budgets.Separate("c"))
	if fill(t, read, each) == 0 || m.used != 3*dialer.MinReceiveBuffer {
		t.Fatalf("a full connection has taken %d bytes, want all beyond the minimum", m.used)
	}
	if fill(t, full, each) != 0 {
		t.Error("the connections of another cluster hold more than there is")
	}
	if m.used != 3*dialer.MinReceiveBuffer {
		t.Errorf("%d bytes are taken after a connection has ended, want %d", m.used, 3*dialer.MinReceiveBuffer)
	}
	if fill(t, dropped, 2*dialer.MinReceiveBuffer) == 0 {
		t.Error("a connection does not get what is left")
	}
	if err := dropped.Close(); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadFull(read, make([]byte, each)); err != nil {
		t.Error(err)
	}
	if m.used != 0 {
		t.Errorf("%d bytes are still taken", m.used)
	}
}
