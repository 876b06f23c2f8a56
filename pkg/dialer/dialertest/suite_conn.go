// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package dialertest

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/nettest"
)

// Tests of what the suite promises about connections.

func testNetConn(t *testing.T, s Subject) {
	e := newEndpoint(t)
	d := open(t, s, e.address())
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		c1, c2 = e.pair(t, d)
		return c1, c2, func() { _ = c1.Close(); _ = c2.Close() }, nil
	})
}

func testAddresses(t *testing.T, s Subject) {
	e := newEndpoint(t)
	c1, _ := e.pair(t, open(t, s, e.address()))
	for side, addr := range map[string]net.Addr{"local": c1.LocalAddr(), "remote": c1.RemoteAddr()} {
		if addr == nil || addr.Network() == "" || addr.String() == "" {
			t.Errorf("%s address is %v", side, addr)
		}
	}
}

// The first bytes of a connection, and its end, can arrive before the answer to its dial.
func testSpeaksAndLeaves(t *testing.T, s Subject) {
	e := newEndpoint(t)
	d := open(t, s, e.address())
	const rounds = 100
	served := make(chan error, 1)
	go func() {
		for range rounds {
			c, err := e.Accept()
			if err != nil {
				served <- err
				return
			}
			_, err = c.Write([]byte("hello"))
			if err = errors.Join(err, c.Close()); err != nil {
				served <- err
				return
			}
		}
		served <- nil
	}()
	for range rounds {
		c, err := d.DialContext(t.Context(), "tcp", e.address())
		if err != nil {
			t.Fatal(err)
		}
		if err := c.SetReadDeadline(time.Now().Add(HangTimeout)); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(c)
		if err != nil || string(got) != "hello" {
			t.Fatalf("read %q, %v; want hello and the end", got, err)
		}
		_ = c.Close()
	}
	if err := Within(t, served, "the endpoint"); err != nil {
		t.Error(err)
	}
}

func testRemoteClose(t *testing.T, s Subject) {
	e := newEndpoint(t)
	c1, c2 := e.pair(t, open(t, s, e.address()))
	want := noise(1 << 20)
	sent := make(chan error, 1)
	go func() {
		_, err := c2.Write(want)
		sent <- errors.Join(err, c2.Close())
	}()
	got, err := io.ReadAll(c1)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("read %d bytes, %v; want %d and the end", len(got), err, len(want))
	}
	if err := Within(t, sent, "the endpoint"); err != nil {
		t.Error(err)
	}
}

func testCloseSends(t *testing.T, s Subject) {
	e := newEndpoint(t)
	c1, c2 := e.pair(t, open(t, s, e.address()))
	want := noise(1 << 20)
	received := make(chan []byte, 1)
	go func() {
		got, err := io.ReadAll(c2)
		if err != nil {
			t.Errorf("endpoint: %v", err)
		}
		received <- got
	}()
	if _, err := c1.Write(want); err != nil {
		t.Fatal(err)
	}
	if err := c1.Close(); err != nil {
		t.Fatal(err)
	}
	if got := Within(t, received, "the endpoint"); !bytes.Equal(got, want) {
		t.Errorf("the endpoint received %d bytes, want the %d that were written before Close", len(got), len(want))
	}
}

func testCloseUnblocksRead(t *testing.T, s Subject) {
	e := newEndpoint(t)
	c1, c2 := e.pair(t, open(t, s, e.address()))
	near, far := make(chan error, 1), make(chan error, 1)
	go func() { near <- readError(c1) }()
	go func() { far <- readError(c2) }()
	if err := c1.Close(); err != nil {
		t.Fatal(err)
	}
	if err := Within(t, near, "Read on the near side"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Read: %v, want net.ErrClosed", err)
	}
	if err := Within(t, far, "Read on the far side"); err != io.EOF {
		t.Errorf("the far side's Read: %v, want io.EOF", err)
	}
	if err := readError(c1); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Read after Close: %v, want net.ErrClosed", err)
	}
	if _, err := c1.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Write after Close: %v, want net.ErrClosed", err)
	}
}

func testCloseUnblocksWrite(t *testing.T, s Subject) {
	e := newEndpoint(t)
	c1, _ := e.pair(t, open(t, s, e.address()))
	// More than all buffers on the way hold, so it cannot return before Close.
	failed := make(chan error, 1)
	go func() {
		_, err := c1.Write(make([]byte, 64<<20))
		failed <- err
	}()
	if err := c1.Close(); err != nil {
		t.Fatal(err)
	}
	if err := Within(t, failed, "Write"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Write: %v, want net.ErrClosed", err)
	}
}

func testParallel(t *testing.T, s Subject) {
	e := newEndpoint(t)
	d := open(t, s, e.address())
	const n, rounds, size = 20, 8, 32 << 10
	var echoes sync.WaitGroup
	defer echoes.Wait()
	echoes.Add(1)
	go func() {
		defer echoes.Done()
		for range n {
			c, err := e.Accept()
			if err != nil {
				return
			}
			echoes.Add(1)
			go func() {
				defer echoes.Done()
				echo(c, rounds*size)
			}()
		}
	}()
	var clients sync.WaitGroup
	for range n {
		clients.Add(1)
		go func() {
			defer clients.Done()
			c, err := d.DialContext(t.Context(), "tcp", e.address())
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = c.Close() }()
			for range rounds {
				mustEcho(t, c, noise(size))
			}
			mustEnd(t, c)
		}()
	}
	clients.Wait()
}

func testWritesDoNotMix(t *testing.T, s Subject) {
	e := newEndpoint(t)
	c1, c2 := e.pair(t, open(t, s, e.address()))
	const size, writers = 300 << 10, 4
	var all sync.WaitGroup
	defer all.Wait()
	for i := range writers {
		all.Add(1)
		go func() {
			defer all.Done()
			if _, err := c1.Write(bytes.Repeat([]byte{byte('a' + i)}, size)); err != nil {
				t.Errorf("write: %v", err)
			}
		}()
	}
	buf := make([]byte, size)
	for range writers {
		if _, err := io.ReadFull(c2, buf); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(buf, bytes.Repeat(buf[:1], size)) {
			t.Fatal("the bytes of two Writes are mixed")
		}
	}
}
