// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package dialer_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/oam-dev/cluster-gateway/pkg/dialer"
	"github.com/oam-dev/cluster-gateway/pkg/dialer/dialertest"
)

func newConn(receiveBuffer int) *dialer.BufferedConn {
	return newBudgetedConn(receiveBuffer, nil)
}

func newBudgetedConn(receiveBuffer int, budget *dialer.Budget) *dialer.BufferedConn {
	return dialer.NewBufferedConn(dialer.BufferedConnConfig{
		Local: dialer.Addr{Name: "near"}, Remote: dialer.Addr{Name: "far"},
		ReceiveBuffer: receiveBuffer, Budget: budget, Ready: func() {},
	})
}

// The carrier gets what was written, in order and in full packets.
func TestBufferedConnOutgoing(t *testing.T) {
	t.Parallel()
	c := newConn(0)
	var want []byte
	for i, size := range []int{1, 100, dialer.MaxPacket, 5, 2*dialer.MaxPacket + 7, 3} {
		p := bytes.Repeat([]byte{byte('a' + i)}, size)
		if n, err := c.Write(p); n != size || err != nil {
			t.Fatalf("Write: %d, %v", n, err)
		}
		want = append(want, p...)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	var got []byte
	for more := true; more; {
		var p []byte
		var end bool
		p, more, end = c.TakeOutgoing()
		if end || len(p) > dialer.MaxPacket || more && len(p) < dialer.MaxPacket {
			t.Fatalf("a packet of %d bytes, more %v, end %v", len(p), more, end)
		}
		got = append(got, p...)
	}
	if !bytes.Equal(got, want) {
		t.Error("the carrier got other bytes than were written")
	}
}

// TakeOutgoing reports the end once, even if the carrier asks again. It does not report it after
// the other end has closed the connection.
func TestBufferedConnEnd(t *testing.T) {
	t.Parallel()
	c := newConn(0)
	_ = c.Close()
	if _, _, end := c.TakeOutgoing(); !end {
		t.Error("a connection that was closed without being used does not end at once")
	}
	if _, _, end := c.TakeOutgoing(); end {
		t.Error("the end is reported twice")
	}
	c = newConn(0)
	c.CloseRemote(nil)
	_ = c.Close()
	if _, _, end := c.TakeOutgoing(); end {
		t.Error("the carrier is asked to close a connection that it has reported as closed")
	}
}

// The end of a connection waits for Linger after its last bytes have been taken. Then Ready is
// called, and TakeOutgoing reports the end.
func TestBufferedConnLinger(t *testing.T) {
	t.Parallel()
	const linger = 20 * time.Millisecond
	ready := make(chan struct{}, 10)
	c := dialer.NewBufferedConn(dialer.BufferedConnConfig{
		Local: dialer.Addr{Name: "near"}, Remote: dialer.Addr{Name: "far"},
		Linger: linger, Ready: func() { ready <- struct{}{} },
	})
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	<-ready
	_ = c.Close()
	<-ready
	taken := time.Now()
	if p, more, end := c.TakeOutgoing(); string(p) != "x" || more || end {
		t.Fatalf("%q, more %v, end %v; want the last byte and no end yet", p, more, end)
	}
	dialertest.Within(t, ready, "the end of the connection")
	if _, _, end := c.TakeOutgoing(); !end {
		t.Error("Ready was called, and TakeOutgoing does not report the end")
	}
	if after := time.Since(taken); after < linger {
		t.Errorf("the end was reported after %s, want at least %s", after, linger)
	}
}

// A carrier that delivers one byte at a time can fill the buffer like one that delivers large
// packets, and the reader gets all of it in order. (Not parallel: it counts allocations.)
func TestBufferedConnSmallPackets(t *testing.T) {
	const limit = 100_000
	c := newConn(limit)
	want := make([]byte, limit)
	for i := range want {
		want[i] = byte(i * 7)
	}
	allocs := testing.AllocsPerRun(1, func() {
		c = newConn(limit)
		for i := range want {
			if err := c.Deliver(want[i : i+1 : i+1]); err != nil {
				t.Fatal(err)
			}
		}
	})
	if allocs > limit/100 {
		t.Errorf("%v allocations for %d packets", allocs, limit)
	}
	if err := c.Deliver([]byte("x")); !errors.Is(err, dialer.ErrBufferFull) {
		t.Errorf("Deliver beyond the limit: %v, want ErrBufferFull", err)
	}
	c = newConn(limit)
	for i := range want {
		_ = c.Deliver(want[i : i+1 : i+1])
	}
	c.CloseRemote(nil)
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read %d bytes, %v", len(got), err)
	}
}

// A connection whose buffer overflows drops what it holds at once. Deliver reports the overflow
// only once.
func TestBufferedConnFull(t *testing.T) {
	t.Parallel()
	c := newConn(10)
	if err := c.Deliver(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	if err := c.Deliver(make([]byte, 1)); !errors.Is(err, dialer.ErrBufferFull) {
		t.Fatalf("%v, want ErrBufferFull", err)
	}
	if err := c.Deliver(make([]byte, 1)); err != nil {
		t.Errorf("another Deliver: %v", err)
	}
	for range 2 {
		if n, err := c.Read(make([]byte, 20)); n != 0 || !errors.Is(err, dialer.ErrBufferFull) {
			t.Errorf("Read: %d, %v", n, err)
		}
	}
	if _, _, end := c.TakeOutgoing(); !end {
		t.Error("the carrier is not asked to close the connection")
	}
}

// A deadline that is replaced while its timer fires has no effect.
func TestBufferedConnDeadlineReplaced(t *testing.T) {
	t.Parallel()
	c := newConn(0)
	defer func() { _ = c.Close() }()
	for range 200 {
		if err := errors.Join(c.SetReadDeadline(time.Now().Add(50*time.Microsecond)), c.SetReadDeadline(time.Time{})); err != nil {
			t.Fatal(err)
		}
	}
	_ = c.Deliver([]byte("x"))
	if _, err := c.Read(make([]byte, 1)); err != nil {
		t.Errorf("Read: %v", err)
	}
	if err := c.SetDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	var ne net.Error
	if _, err := c.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &ne) || !ne.Timeout() {
		t.Errorf("Write: %v, want a timeout", err)
	}
}
