// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package link is a TCP proxy that simulates a distance between its two sides: a round-trip time
// and a limited bandwidth. It runs in user space, so it needs no kernel module and no privileges.
//
// Data is forwarded half a round trip after it arrives, in order, and no faster than the bandwidth.
// All connections of the link share the bandwidth of each direction. A new connection costs a round
// trip, like TCP's handshake. The proxy does not model packet loss, reordering, and TCP's slow
// start, which would make cold connections slower still.
package link

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

const (
	// chunk is the maximum size of one read. It is small, so that a limited bandwidth is not used in
	// bursts.
	chunk = 16 << 10
	// window is the maximum number of chunks in transit on one connection in one direction. A sender
	// that is further ahead waits, as it would for a TCP window. 8 MiB are enough for 300 Mbit/s at
	// 200 ms.
	window = 512
)

// Link is a running proxy. It is safe for concurrent use.
type Link struct {
	listener net.Listener
	target   string

	mu        sync.Mutex
	rtt       time.Duration
	bandwidth float64 // bytes per second; 0 means no limit
	// free is when each direction has finished sending what it was given.
	free  [2]time.Time
	conns map[net.Conn]struct{} // nil once closed

	ctx    context.Context
	cancel context.CancelFunc
	group  sync.WaitGroup
}

// New starts a link from a free port of 127.0.0.1 to target, without delay or limit. Close stops it
// and closes its connections.
func New(target string) (*Link, error) {
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	l := &Link{listener: listener, target: target, conns: map[net.Conn]struct{}{}}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.group.Go(l.accept)
	return l, nil
}

// Addr returns the address to connect to.
func (l *Link) Addr() string { return l.listener.Addr().String() }

// Port returns the port of Addr.
func (l *Link) Port() int { return l.listener.Addr().(*net.TCPAddr).Port }

// Set changes the distance for everything that is sent from now on. A bandwidth of 0 bytes per
// second means no limit.
func (l *Link) Set(rtt time.Duration, bandwidth float64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rtt, l.bandwidth = rtt, bandwidth
}

// Close stops the link and waits until all its goroutines have ended.
func (l *Link) Close() error {
	l.cancel()
	err := l.listener.Close()
	l.mu.Lock()
	for conn := range l.conns {
		_ = conn.Close() // the connection is only closed
	}
	l.conns = nil
	l.mu.Unlock()
	l.group.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (l *Link) accept() {
	for {
		near, err := l.listener.Accept()
		if err != nil {
			return
		}
		l.group.Go(func() { l.serve(near) })
	}
}

func (l *Link) serve(near net.Conn) {
	if !l.add(near) {
		return
	}
	defer l.remove(near)
	l.mu.Lock()
	handshake := l.rtt
	l.mu.Unlock()
	if !l.sleepUntil(time.Now().Add(handshake)) {
		return
	}
	var dialer net.Dialer
	far, err := dialer.DialContext(l.ctx, "tcp", l.target)
	if err != nil || !l.add(far) {
		return
	}
	defer l.remove(far)
	var directions sync.WaitGroup
	directions.Go(func() { l.carry(far, near, 0) })
	directions.Go(func() { l.carry(near, far, 1) })
	directions.Wait()
}

func (l *Link) add(conn net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conns == nil {
		_ = conn.Close() // the link is closed
		return false
	}
	l.conns[conn] = struct{}{}
	return true
}

func (l *Link) remove(conn net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, conn)
	_ = conn.Close() // it may be closed already
}

// parcel is the result of one read, with the time at which it is due on the other side.
type parcel struct {
	data []byte
	due  time.Time
}

// carry copies one direction of a connection. It ends when the sender closes its side, which carry
// passes on, or when the receiver fails.
func (l *Link) carry(to, from net.Conn, direction int) {
	parcels := make(chan parcel, window)
	var writer sync.WaitGroup
	writer.Go(func() {
		defer func() {
			// The sender has no receiver any more.
			for range parcels {
			}
		}()
		for p := range parcels {
			if !l.sleepUntil(p.due) {
				break
			}
			if _, err := to.Write(p.data); err != nil {
				_ = from.Close() // makes the reader return
				break
			}
		}
		if half, ok := to.(*net.TCPConn); ok {
			_ = half.CloseWrite() // it may be closed already
		}
	})
	for {
		buffer := make([]byte, chunk)
		n, err := from.Read(buffer)
		if n > 0 {
			parcels <- parcel{buffer[:n], l.due(n, direction)}
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				_ = to.Close() // a reset is passed on as a normal end
			}
			break
		}
	}
	close(parcels)
	writer.Wait()
}

// due returns when n bytes that are sent now arrive.
func (l *Link) due(n, direction int) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	departs := time.Now()
	if l.bandwidth > 0 {
		if l.free[direction].After(departs) {
			departs = l.free[direction]
		}
		departs = departs.Add(time.Duration(float64(n) / l.bandwidth * float64(time.Second)))
		l.free[direction] = departs
	}
	return departs.Add(l.rtt / 2)
}

func (l *Link) sleepUntil(t time.Time) bool {
	wait := time.Until(t)
	if wait <= 0 {
		return l.ctx.Err() == nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-l.ctx.Done():
		return false
	}
}
