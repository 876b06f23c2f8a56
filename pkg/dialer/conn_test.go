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
)

func newConn(receiveMax int) *dialer.BufferedConn {
	return dialer.NewBufferedConn(dialer.Addr{Name: "near"}, dialer.Addr{Name: "far"}, receiveMax, nil, func() {})
}

// What is written comes out in order, in packets that are filled up, and the end after it.
func TestBufferedConnOutgoing(t *testing.T) {
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
		t.Error("the bytes differ")
	}
}

// The end is told once, also when the carrier asks again; after a close by the other end, not at all.
func TestBufferedConnEnd(t *testing.T) {
	c := newConn(0)
	_ = c.Close()
	if _, _, end := c.TakeOutgoing(); !end {
		t.Error("an unused connection that was closed does not end at once")
	}
	if _, _, end := c.TakeOutgoing(); end {
		t.Error("the end is told twice")
	}
	c = newConn(0)
	c.CloseRemote(nil)
	_ = c.Close()
	if _, _, end := c.TakeOutgoing(); end {
		t.Error("the carrier is to close what it has closed")
	}
}

// A carrier that brings a byte at a time fills the buffer as one that brings large packets, and the reader gets all of it in order.
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
		t.Errorf("beyond the limit: %v", err)
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

// What a connection holds when it fills up is given back at once; a carrier that goes on is not told again.
func TestBufferedConnFull(t *testing.T) {
	c := newConn(10)
	if err := c.Deliver(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	if err := c.Deliver(make([]byte, 1)); !errors.Is(err, dialer.ErrBufferFull) {
		t.Fatalf("%v, want ErrBufferFull", err)
	}
	if err := c.Deliver(make([]byte, 1)); err != nil {
		t.Errorf("once more: %v", err)
	}
	for range 2 {
		if n, err := c.Read(make([]byte, 20)); n != 0 || !errors.Is(err, dialer.ErrBufferFull) {
			t.Errorf("Read: %d, %v", n, err)
		}
	}
	if _, _, end := c.TakeOutgoing(); !end {
		t.Error("the carrier is not told to close")
	}
}

// A deadline that has been replaced while its timer fired says nothing.
func TestBufferedConnDeadlineReplaced(t *testing.T) {
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

// Connections that are not read share a bound, and one that is read goes on beside them.
func TestBufferedConnBudget(t *testing.T) {
	const each = 4 << 20
	budget := dialer.NewBudget(each, &dialer.Blocks{})
	made := func() *dialer.BufferedConn {
		return dialer.NewBufferedConn(dialer.Addr{Name: "near"}, dialer.Addr{Name: "far"}, each, budget, func() {})
	}
	packet := func() []byte { return make([]byte, 64<<10) }
	var stuck []*dialer.BufferedConn
	held := 0
	for range 40 {
		c := made()
		stuck = append(stuck, c)
		for n := 0; n < each; n += len(packet()) {
			if err := c.Deliver(packet()); err != nil {
				if !errors.Is(err, dialer.ErrBufferFull) {
					t.Fatal(err)
				}
				held -= n
				break
			}
			held += len(packet())
		}
	}
	// Four full buffers, and nothing of those that came after.
	if want := 4 * each; held != want {
		t.Errorf("40 connections that are not read hold %d bytes, want %d", held, want)
	}
	reading := made()
	buf := make([]byte, 64<<10)
	for range 100 {
		if err := reading.Deliver(packet()); err != nil {
			t.Fatalf("a connection that is read: %v", err)
		}
		if _, err := io.ReadFull(reading, buf); err != nil {
			t.Fatal(err)
		}
	}
	// What is closed, or has been read, is free for others.
	for _, c := range stuck {
		_ = c.Close()
	}
	late := made()
	for range each / len(packet()) {
		if err := late.Deliver(packet()); err != nil {
			t.Fatalf("after the others have gone: %v", err)
		}
	}
}
