// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package dialertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/nettest"

	"github.com/oam-dev/cluster-gateway/pkg/dialer"
)

// hang is how long a step may take before the test calls it a hang; no assertion is about time otherwise.
const hang = 30 * time.Second

// Subject is a form of dialer.Dialer under test.
type Subject struct {
	// Cluster is the name that its errors carry.
	Cluster string
	// New returns a Dialer whose registered API server is address. It is closed by the suite.
	New func(t testing.TB, address string) dialer.Dialer
	// Tunnelled says that nothing but the registered address may be dialled.
	Tunnelled bool
}

// TestDialer is what every Dialer promises. The endpoint is always a TCP listener of the suite.
func TestDialer(t *testing.T, s Subject) {
	// What carries the subject starts its goroutines when it is first used.
	if ok := t.Run("Warm", func(t *testing.T) {
		e := newEndpoint(t)
		e.pair(t, open(t, s, e.address()))
	}); !ok {
		return
	}
	for _, test := range []struct {
		name string
		run  func(t *testing.T, s Subject)
	}{
		{"NetConn", testNetConn},
		{"Addresses", testAddresses},
		{"ContextBoundsEstablishmentOnly", testContextEstablishmentOnly},
		{"ContextEndedBefore", testContextEndedBefore},
		{"ContextEndsMeanwhile", testContextEndsMeanwhile},
		{"EndpointSpeaksAndLeavesAtOnce", testSpeaksAndLeaves},
		{"RemoteCloseKeepsWhatWasSent", testRemoteClose},
		{"CloseSendsWhatWasWritten", testCloseSends},
		{"CloseUnblocksBothSides", testCloseUnblocksRead},
		{"CloseUnblocksWrite", testCloseUnblocksWrite},
		{"ParallelConnections", testParallel},
		{"WritesDoNotMix", testWritesDoNotMix},
		{"RefusedEndpoint", testRefused},
		{"OtherAddress", testOtherAddress},
		{"DialerClose", testDialerClose},
		{"DialerCloseCancelsDials", testDialerCloseCancels},
	} {
		t.Run(test.name, func(t *testing.T) {
			// What the subject itself runs stays; each test starts and ends its own dialers and connections.
			running := goleak.IgnoreCurrent()
			ok := t.Run("it", func(t *testing.T) { test.run(t, s) })
			if ok {
				NoLeak(t, running)
			}
		})
	}
}

// NoLeak waits until no goroutine runs that options do not excuse. It has more patience than goleak: a stock agent's own dial may
// take five seconds to fail.
func NoLeak(t testing.TB, options ...goleak.Option) {
	t.Helper()
	var err error
	for begin := time.Now(); time.Since(begin) < hang; {
		if err = goleak.Find(options...); err == nil {
			return
		}
	}
	t.Error(err)
}

// endpoint is the API server's side.
type endpoint struct {
	net.Listener
}

func newEndpoint(t *testing.T) *endpoint { return &endpoint{Listen(t)} }

func (e *endpoint) address() string { return e.Addr().String() }

// pair dials e and returns both ends.
func (e *endpoint) pair(t testing.TB, d dialer.Dialer) (c1, c2 net.Conn) {
	t.Helper()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := e.Accept()
		if err != nil {
			t.Errorf("accept: %v", err)
		}
		accepted <- c
	}()
	c1, err := d.DialContext(t.Context(), "tcp", e.address())
	if err != nil {
		_ = e.Close()
		<-accepted
		t.Fatalf("dial: %v", err)
	}
	c2 = <-accepted
	t.Cleanup(func() {
		_ = c1.Close() // a test may have
		_ = c2.Close()
	})
	return c1, c2
}

func open(t testing.TB, s Subject, address string) dialer.Dialer {
	t.Helper()
	d := s.New(t, address)
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("Close of the dialer: %v", err)
		}
	})
	return d
}

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

func testContextEstablishmentOnly(t *testing.T, s Subject) {
	e := newEndpoint(t)
	d := open(t, s, e.address())
	go func() {
		if c, err := e.Accept(); err == nil {
			_, _ = io.Copy(c, c)
			_ = c.Close()
		}
	}()
	ctx, cancel := context.WithCancel(t.Context())
	c, err := d.DialContext(ctx, "tcp", e.address())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	cancel()
	for range 3 {
		mustEcho(t, c, []byte("after the context"))
	}
}

func testContextEndedBefore(t *testing.T, s Subject) {
	e := newEndpoint(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := open(t, s, e.address()).DialContext(ctx, "tcp", e.address())
	mustBeError(t, s, err, e.address(), context.Canceled)
}

func testContextEndsMeanwhile(t *testing.T, s Subject) {
	address := Unanswering(t)
	d := open(t, s, address)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	consulted := newConsulted(ctx)
	failed := make(chan error, 1)
	go func() { failed <- dialError(d, consulted, address) }()
	wait(t, consulted.asked, "the dial to begin")
	cancel()
	mustBeError(t, s, wait(t, failed, "the cancelled dial"), address, context.Canceled)
}

// The first bytes and the end of a connection can be there before its dialler is.
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
		if err := c.SetReadDeadline(time.Now().Add(hang)); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(c)
		if err != nil || string(got) != "hello" {
			t.Fatalf("read %q, %v; want hello and the end", got, err)
		}
		_ = c.Close()
	}
	if err := wait(t, served, "the endpoint"); err != nil {
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
	if err := wait(t, sent, "the endpoint"); err != nil {
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
	if got := wait(t, received, "the endpoint"); !bytes.Equal(got, want) {
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
	if err := wait(t, near, "Read on the near side"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Read: %v, want net.ErrClosed", err)
	}
	if err := wait(t, far, "Read on the far side"); err != io.EOF {
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
	// More than all the buffers on the way hold: it cannot return before Close.
	failed := make(chan error, 1)
	go func() {
		_, err := c1.Write(make([]byte, 64<<20))
		failed <- err
	}()
	if err := c1.Close(); err != nil {
		t.Fatal(err)
	}
	if err := wait(t, failed, "Write"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Write: %v, want net.ErrClosed", err)
	}
}

func testParallel(t *testing.T, s Subject) {
	e := newEndpoint(t)
	d := open(t, s, e.address())
	const n = 20
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
				_, _ = io.Copy(c, c)
				_ = c.Close()
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
			for range 8 {
				mustEcho(t, c, noise(32<<10))
			}
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

func testRefused(t *testing.T, s Subject) {
	e := newEndpoint(t)
	address := e.address()
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	err := dialError(open(t, s, address), t.Context(), address)
	if de := mustBeError(t, s, err, address, nil); de != nil && de.Stage != dialer.StageEndpoint {
		t.Errorf("stage %q, want %q", de.Stage, dialer.StageEndpoint)
	}
}

func testOtherAddress(t *testing.T, s Subject) {
	if !s.Tunnelled {
		t.Skip("a direct dialer dials what it is told")
	}
	e, other := newEndpoint(t), newEndpoint(t)
	touched := make(chan net.Conn, 1)
	go func() {
		if c, err := other.Accept(); err == nil {
			touched <- c
			_ = c.Close()
		}
		close(touched)
	}()
	d := open(t, s, e.address())
	mustBeError(t, s, dialError(d, t.Context(), other.address()), other.address(), dialer.ErrAddressNotAllowed)
	// A dial that is allowed has come and gone on the same way: nothing is still on its way to the other.
	c1, c2 := e.pair(t, d)
	_, _ = c1.Close(), c2.Close()
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	if c := wait(t, touched, "the other endpoint"); c != nil {
		t.Error("the other address was dialled")
	}
}

func testDialerClose(t *testing.T, s Subject) {
	e := newEndpoint(t)
	d := s.New(t, e.address())
	c1, c2 := e.pair(t, d)
	near, far := make(chan error, 1), make(chan error, 1)
	go func() { near <- readError(c1) }()
	go func() { far <- readError(c2) }()
	closes := make(chan error, 4)
	for range cap(closes) {
		go func() { closes <- d.Close() }()
	}
	for range cap(closes) {
		if err := wait(t, closes, "Close"); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	if err := wait(t, near, "Read on the near side"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Read: %v, want net.ErrClosed", err)
	}
	if err := wait(t, far, "Read on the far side"); err != io.EOF {
		t.Errorf("the far side's Read: %v, want io.EOF", err)
	}
	if err := d.Close(); err != nil {
		t.Errorf("Close once more: %v", err)
	}
	mustBeError(t, s, dialError(d, t.Context(), e.address()), e.address(), net.ErrClosed)
}

func testDialerCloseCancels(t *testing.T, s Subject) {
	address := Unanswering(t)
	d := s.New(t, address)
	const n = 5
	failed := make(chan error, n)
	for range n {
		consulted := newConsulted(t.Context())
		go func() { failed <- dialError(d, consulted, address) }()
		wait(t, consulted.asked, "the dial to begin")
	}
	if err := d.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	for range n {
		mustBeError(t, s, wait(t, failed, "a dial under way"), address, net.ErrClosed)
	}
}

// Unanswering returns an address that takes no connection and refuses none: a listener whose queue is full.
func Unanswering(t testing.TB) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if err := errors.Join(
		syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}),
		syscall.Listen(fd, 0),
	); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprintf("127.0.0.1:%d", name.(*syscall.SockaddrInet4).Port)
	for range 3 {
		c, err := net.DialTimeout("tcp", address, 200*time.Millisecond)
		if err != nil {
			return address
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	t.Skip("this system accepts connections beyond a listener's queue")
	return ""
}

// consultedContext tells when somebody waits for it, so when a dial has begun.
type consultedContext struct {
	context.Context
	once  sync.Once
	asked chan struct{}
}

func newConsulted(ctx context.Context) *consultedContext {
	return &consultedContext{Context: ctx, asked: make(chan struct{})}
}

func (c *consultedContext) Done() <-chan struct{} {
	c.once.Do(func() { close(c.asked) })
	return c.Context.Done()
}

func wait[T any](t testing.TB, ch <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(hang):
		t.Fatalf("%s hangs", what)
		panic("unreachable")
	}
}

func dialError(d dialer.Dialer, ctx context.Context, address string) error {
	c, err := d.DialContext(ctx, "tcp", address)
	if err == nil {
		_ = c.Close()
	}
	return err
}

func readError(c net.Conn) error {
	_, err := c.Read(make([]byte, 1))
	return err
}

// mustBeError checks what is true of every failure: the type, the cluster, a stage, the address and a cause, which is want if that
// is given.
func mustBeError(t testing.TB, s Subject, err error, address string, want error) *dialer.Error {
	t.Helper()
	var de *dialer.Error
	switch {
	case err == nil:
		t.Error("the dial succeeded")
	case !errors.As(err, &de):
		t.Errorf("the error is a %T (%v), want *dialer.Error", err, err)
	case de.Cluster != s.Cluster || de.Address != address || de.Stage == "" || de.Err == nil:
		t.Errorf("the error says cluster %q, address %q, stage %q, cause %v; want cluster %q, address %q", de.Cluster, de.Address, de.Stage, de.Err, s.Cluster, address)
	case want != nil && !errors.Is(err, want):
		t.Errorf("the error is %v, want one that wraps %v", err, want)
	}
	return de
}

func mustEcho(t testing.TB, c net.Conn, p []byte) {
	t.Helper()
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(p)
		sent <- err
	}()
	got := make([]byte, len(p))
	if _, err := io.ReadFull(c, got); err != nil {
		t.Errorf("echo: %v", err)
	} else if !bytes.Equal(got, p) {
		t.Error("the echo differs")
	}
	if err := <-sent; err != nil {
		t.Errorf("echo: %v", err)
	}
}

func noise(n int) []byte {
	p := make([]byte, n)
	r := rand.New(rand.NewPCG(uint64(n), 1))
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return p
}
