// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package dialer

import (
	"cmp"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

const (
	// DefaultReceiveBuffer is how many bytes a BufferedConn holds by default for a client that does
	// not read. HTTP/2 has flow control of its own and needs almost none of it. The buffer is for
	// upgraded connections (exec, cp, port-forward): it is how far their client may lag behind.
	DefaultReceiveBuffer = 64 << 20

	// sendBuffer is how many bytes a BufferedConn accepts before Write blocks: a few packets, so that
	// the next one is always ready.
	sendBuffer = 128 << 10

	// acceptWindow is how many bytes a BufferedConn holds before Accept asks its carrier to wait.
	acceptWindow = 1 << 20

	// defaultLinger was found by trying: on a busy machine a quarter of a second was too short.
	defaultLinger = time.Second
)

// BufferedConnConfig configures a BufferedConn.
type BufferedConnConfig struct {
	// Local and Remote are the addresses of the connection's ends. Both are required.
	Local, Remote net.Addr
	// ReceiveBuffer is how many bytes the connection holds until the client reads them.
	// 0 means DefaultReceiveBuffer.
	ReceiveBuffer int
	// Budget bounds the receive buffers of several connections together. nil means no such bound.
	Budget *Budget
	// Linger is how long the end of the connection waits after its last bytes have been sent.
	// 0 means one second. The stock agent discards what it has received and not yet written to the
	// API server when it is asked to close, and the protocol does not report what has been written.
	Linger time.Duration
	// Ready is called when TakeOutgoing has something to return, from any goroutine and any number of
	// times. It must not block. It is required.
	Ready func()
}

// BufferedConn is the client's end of a connection that a tunnel carries. It is a net.Conn with
// working deadlines, non-nil addresses, and a Close that unblocks Read and Write.
//
// The other end is the carrier: the code that moves the bytes through the tunnel. The carrier calls
// Deliver and CloseRemote for what comes in, and TakeOutgoing for what goes out, each time that
// Ready has been called. None of these three blocks. A slow client therefore never blocks a carrier
// that serves other connections, too. A carrier that serves nobody else calls Accept instead of
// Deliver, and waits when Accept asks for it: then the other end notices that the client is slow.
//
// All methods are safe for concurrent use. Use NewBufferedConn.
type BufferedConn struct {
	cfg BufferedConnConfig

	mu sync.Mutex
	// readable and writable wake Read and Write. Both use mu.
	readable, writable sync.Cond

	received  backlog       // not read yet
	account   account       // of received
	resume    chan struct{} // closed when the carrier of Accept can go on; nil if it does not wait
	resumeAt  int           // the number of bytes in received at which it can go on
	outgoing  outgoing      // not taken by the carrier yet
	remoteErr error         // Read returns it after received is empty; set by CloseRemote or a full buffer
	closed    bool          // Close was called
	finished  bool          // nothing more goes out: TakeOutgoing has returned the end, or the remote closed
	lastTaken time.Time     // when the carrier last took bytes; zero before the first time
	// writing is true during a Write. Other Writes wait, so that their bytes never mix, as on a
	// socket.
	writing bool

	readDeadline, writeDeadline deadline
}

var _ net.Conn = (*BufferedConn)(nil)

// NewBufferedConn returns an open connection.
func NewBufferedConn(cfg BufferedConnConfig) *BufferedConn {
	cfg.ReceiveBuffer = cmp.Or(max(cfg.ReceiveBuffer, 0), DefaultReceiveBuffer)
	cfg.Linger = cmp.Or(cfg.Linger, defaultLinger)
	c := &BufferedConn{cfg: cfg, received: backlog{blocks: cfg.Budget.blockPool()}, account: account{budget: cfg.Budget}}
	c.readable.L, c.writable.L = &c.mu, &c.mu
	c.readDeadline.cond, c.writeDeadline.cond = &c.readable, &c.writable
	return c
}

// Read implements net.Conn.
func (c *BufferedConn) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		switch {
		case c.closed:
			return 0, c.opError("read", net.ErrClosed)
		case c.readDeadline.passed:
			return 0, c.opError("read", os.ErrDeadlineExceeded)
		case len(p) == 0:
			return 0, nil
		case c.received.bytes > 0:
			return c.readLocked(p), nil
		case c.remoteErr == io.EOF: //nolint:errorlint // an error that wraps EOF is a failure
			return 0, io.EOF
		case c.remoteErr != nil:
			return 0, c.opError("read", c.remoteErr)
		}
		c.readable.Wait()
	}
}

func (c *BufferedConn) readLocked(p []byte) int {
	held := c.received.bytes
	n := c.received.read(p)
	c.account.give(held, n)
	if c.received.bytes <= c.resumeAt {
		c.resumeLocked()
	}
	if c.received.bytes > 0 {
		c.readable.Signal() // another reader may be waiting for the rest
	}
	return n
}

// Write implements net.Conn. As with a socket, it returns when all of p has been accepted for
// sending. A later failure is the error of the next call.
func (c *BufferedConn) Write(p []byte) (n int, err error) {
	c.mu.Lock()
	for c.writing && c.writeErrLocked() == nil {
		c.writable.Wait()
	}
	if err := c.writeErrLocked(); err != nil {
		c.mu.Unlock()
		return 0, err
	}
	c.writing = true
	for n < len(p) {
		if err = c.writeErrLocked(); err != nil {
			break
		}
		room := sendBuffer - c.outgoing.bytes
		if room <= 0 {
			c.writable.Wait()
			continue
		}
		k := min(room, len(p)-n)
		c.outgoing.write(p[n : n+k])
		n += k
		c.mu.Unlock()
		c.cfg.Ready()
		c.mu.Lock()
	}
	c.writing = false
	c.writable.Signal()
	c.mu.Unlock()
	return n, err
}

func (c *BufferedConn) writeErrLocked() error {
	switch {
	case c.closed:
		return c.opError("write", net.ErrClosed)
	case c.writeDeadline.passed:
		return c.opError("write", os.ErrDeadlineExceeded)
	case c.remoteErr == io.EOF: //nolint:errorlint // an error that wraps EOF is a failure
		return c.opError("write", io.ErrClosedPipe)
	case c.remoteErr != nil:
		return c.opError("write", c.remoteErr)
	}
	return nil
}

// Close implements net.Conn. Read and Write fail with net.ErrClosed from then on. What has been
// written is still sent, as far as the tunnel allows it; see BufferedConnConfig.Linger. Close does
// not wait for that.
func (c *BufferedConn) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return c.opError("close", net.ErrClosed)
	}
	c.closed = true
	c.dropReceivedLocked()
	c.readDeadline.stop()
	c.writeDeadline.stop()
	c.wakeAllLocked()
	c.mu.Unlock()
	c.cfg.Ready()
	return nil
}

func (c *BufferedConn) dropReceivedLocked() {
	held := c.received.bytes
	c.account.give(held, c.received.drop())
	c.resumeLocked()
}

// resumeLocked lets the carrier of Accept go on.
func (c *BufferedConn) resumeLocked() {
	if c.resume != nil {
		close(c.resume)
		c.resume = nil
	}
}

// wakeAllLocked wakes everything that waits in Read or Write.
func (c *BufferedConn) wakeAllLocked() {
	c.readable.Broadcast()
	c.writable.Broadcast()
}

// LocalAddr implements net.Conn.
func (c *BufferedConn) LocalAddr() net.Addr { return c.cfg.Local }

// RemoteAddr implements net.Conn.
func (c *BufferedConn) RemoteAddr() net.Addr { return c.cfg.Remote }

// SetDeadline implements net.Conn.
func (c *BufferedConn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

// SetReadDeadline implements net.Conn.
func (c *BufferedConn) SetReadDeadline(t time.Time) error { return c.setDeadline(&c.readDeadline, t) }

// SetWriteDeadline implements net.Conn.
func (c *BufferedConn) SetWriteDeadline(t time.Time) error { return c.setDeadline(&c.writeDeadline, t) }

func (c *BufferedConn) setDeadline(d *deadline, t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return c.opError("set", net.ErrClosed)
	}
	d.set(t)
	return nil
}

func (c *BufferedConn) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: "tcp", Source: c.cfg.Local, Addr: c.cfg.Remote, Err: err}
}

// Addr is the address of one end of a tunneled connection.
type Addr struct {
	// Name is the text of the address: "cluster/host:port" for the remote end, "tunnel" for the local
	// one.
	Name string
}

var _ net.Addr = Addr{}

// Network implements net.Addr.
func (Addr) Network() string { return "tcp" }

// String implements net.Addr.
func (a Addr) String() string { return a.Name }
