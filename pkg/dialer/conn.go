// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package dialer

import (
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// DefaultReceiveBuffer is how many bytes a BufferedConn holds for a consumer that does not read, by default.
// HTTP/2 needs next to nothing, having flow control of its own; the buffer is for upgraded connections (exec, cp,
// port-forward), and is as long as a consumer may lag behind before its connection ends.
const DefaultReceiveBuffer = 64 << 20

// sendBuffer is how many bytes a BufferedConn accepts before Write blocks; a few packets, so that the sender always has
// the next one at hand.
const sendBuffer = 128 << 10

// MaxPacket is the most bytes that TakeOutgoing returns at once. The stock agent reads its side in pieces of 4 KiB; on this
// side larger pieces cost fewer packets, and small enough ones let the connections of an agent take turns.
const MaxPacket = 32 << 10

// linger is how long the end of a connection is held back after the last bytes of it have gone out. The stock agent throws away
// what it has received and not yet written when it is told to close, and there is no way to learn that it has written it. On a machine that
// is short of time a quarter of a second was too little.
const linger = time.Second

// blockSize is that of the pieces in which a backlog is kept: four packets of the stock agent's.
const blockSize = 16 << 10

// block is a piece of a backlog. What is in it from read up to written has not been read.
type block struct {
	data          [blockSize]byte
	read, written int
	next          *block
}

// budgetBuffers is how many full receive buffers a Budget has room for, and keepBelow what each connection may hold beside it.
const (
	budgetBuffers = 4
	keepBelow     = 1 << 20
)

// Blocks are the pieces of backlogs that no connection uses now. All that share them find one when they need it, where each keeping its own
// would hold it for nothing most of the time. Its zero value is ready. It is safe for concurrent use.
type Blocks struct{ pool sync.Pool }

// Budget bounds what the receive buffers of many connections hold together, those of one cluster: whoever may open connections to
// it must not, by not reading, take the memory that other clusters need. It is safe for concurrent use; nil is no bound.
type Budget struct {
	limit int64
	used  atomic.Int64
	// blocks may be shared with other budgets.
	blocks *Blocks
}

// NewBudget returns a bound for connections that buffer up to receiveMax bytes each (0: DefaultReceiveBuffer), in blocks.
func NewBudget(receiveMax int, blocks *Blocks) *Budget {
	if receiveMax <= 0 {
		receiveMax = DefaultReceiveBuffer
	}
	return &Budget{limit: int64(receiveMax) * budgetBuffers, blocks: blocks}
}

func (b *Budget) add(n int) {
	if b != nil {
		b.used.Add(int64(n))
	}
}

// refuses says whether n bytes more are too many for a connection that holds held. One that keeps up goes on when others have used
// the budget up.
func (b *Budget) refuses(held, n int) bool {
	return b != nil && held+n > keepBelow && b.used.Load()+int64(n) > b.limit
}

// lend returns an empty block; giveBack takes it when it has been read.
func (b *Budget) lend() *block {
	if b != nil {
		if l, ok := b.blocks.pool.Get().(*block); ok {
			return l
		}
	}
	return &block{}
}

func (b *Budget) giveBack(l *block) {
	if b != nil {
		l.read, l.written, l.next = 0, 0, nil
		b.blocks.pool.Put(l)
	}
}

// BufferedConn is the consumer's end of a connection that is carried over a tunnel: a net.Conn with working deadlines,
// non-nil addresses and a Close that unblocks Read and Write.
//
// Its other end is whoever carries the bytes: it calls Deliver and CloseRemote for what comes in, and TakeOutgoing for what
// goes out, each time that the ready function has announced something. None of these blocks, so that a slow consumer never
// holds up a carrier that has other connections to serve.
type BufferedConn struct {
	local, remote net.Addr
	receiveMax    int
	budget        *Budget
	// ready announces that TakeOutgoing has something to say. It is called without mu held, any number of times.
	ready func()

	mu sync.Mutex
	// readable and writable wake Read and Write; both use mu.
	readable, writable sync.Cond

	first    *block // received, not yet read: a list, in the order of the bytes
	last     *block
	inBytes  int
	out      [][]byte // written, not yet taken; pieces of MaxPacket at most
	outBytes int
	inErr    error     // what Read returns once in is empty; set by CloseRemote or by a full buffer
	closed   bool      // Close was called
	finished bool      // the carrier has been told of the end, or has told us: nothing more goes out
	taken    time.Time // when something was last taken from out; zero before
	writing  bool      // a Write is under way; another waits, so that the bytes of two never mix (as with a socket)

	readDeadline, writeDeadline deadline
}

var _ net.Conn = (*BufferedConn)(nil)

// NewBufferedConn returns a connection that buffers up to receiveMax bytes (0: DefaultReceiveBuffer). ready is called,
// from any goroutine, when there is something to take. budget bounds it together with other connections; nil does not.
func NewBufferedConn(local, remote net.Addr, receiveMax int, budget *Budget, ready func()) *BufferedConn {
	if receiveMax <= 0 {
		receiveMax = DefaultReceiveBuffer
	}
	c := &BufferedConn{local: local, remote: remote, receiveMax: receiveMax, budget: budget, ready: ready}
	c.readable.L, c.writable.L = &c.mu, &c.mu
	c.readDeadline.cond, c.writeDeadline.cond = &c.readable, &c.writable
	return c
}

// Deliver hands a copy of p to the reader. It never blocks. It returns ErrBufferFull when the
// buffer is full, which also ends the connection: the carrier then has a close to send (see TakeOutgoing).
func (c *BufferedConn) Deliver(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	c.mu.Lock()
	if c.closed || c.inErr != nil {
		c.mu.Unlock()
		return nil // over already: what still arrives is dropped
	}
	if c.inBytes+len(p) <= c.receiveMax && !c.budget.refuses(c.inBytes, len(p)) {
		c.storeLocked(p)
		c.readable.Signal()
		c.mu.Unlock()
		return nil
	}
	// What is buffered goes, too: it is a truncated stream either way, and the memory is the point.
	c.dropReceivedLocked()
	c.out, c.outBytes = nil, 0
	c.inErr = ErrBufferFull
	c.wakeLocked()
	c.mu.Unlock()
	c.ready()
	return ErrBufferFull
}

// storeLocked queues a copy of p. That a block is filled before there is another keeps a peer that sends a byte at a time from making
// the buffer cost many times what inBytes says.
func (c *BufferedConn) storeLocked(p []byte) {
	c.inBytes += len(p)
	c.budget.add(len(p))
	for len(p) > 0 {
		switch {
		case c.last == nil:
			c.last = c.budget.lend()
			c.first = c.last
		case c.last.written == blockSize:
			c.last.next = c.budget.lend()
			c.last = c.last.next
		}
		n := copy(c.last.data[c.last.written:], p)
		c.last.written += n
		p = p[n:]
	}
}

// CloseRemote says that the other end is gone. The reader gets what is buffered, then err (nil: io.EOF); writes fail at
// once.
func (c *BufferedConn) CloseRemote(err error) {
	if err == nil {
		err = io.EOF
	}
	c.mu.Lock()
	if c.inErr == nil {
		c.inErr = err
	}
	c.out, c.outBytes, c.finished = nil, 0, true
	c.wakeLocked()
	c.mu.Unlock()
}

// TakeOutgoing returns the next bytes to send, MaxPacket at most, with more saying whether there is something left to
// take. end is true, once only, when the connection is over on this side and the carrier has to close it.
func (c *BufferedConn) TakeOutgoing() (p []byte, more, end bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.finished {
		return nil, false, false
	}
	if len(c.out) > 0 {
		p, c.out[0] = c.out[0], nil
		if c.out = c.out[1:]; len(c.out) == 0 {
			c.out = nil
		}
		c.outBytes -= len(p)
		// All of them: the one that is in the middle of a Write, and not the one that waits for its turn, must hear it.
		c.writable.Broadcast()
		c.taken = time.Now()
	}
	if len(c.out) > 0 || !c.closed && c.inErr == nil {
		return p, len(c.out) > 0, false
	}
	if wait := linger - time.Since(c.taken); wait > 0 && c.inErr == nil {
		time.AfterFunc(wait, c.ready)
		return p, false, false
	}
	c.finished = true
	return p, false, true
}

func (c *BufferedConn) dropReceivedLocked() {
	c.budget.add(-c.inBytes)
	c.inBytes = 0
	for c.first != nil {
		c.dropFirstLocked()
	}
}

// wakeLocked wakes whoever waits in Read or Write.
func (c *BufferedConn) wakeLocked() {
	c.readable.Broadcast()
	c.writable.Broadcast()
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
		case c.inBytes > 0:
			return c.readLocked(p), nil
		case c.inErr == io.EOF: //nolint:errorlint // a failure that wraps EOF is no clean end
			return 0, io.EOF
		case c.inErr != nil:
			return 0, c.opError("read", c.inErr)
		}
		c.readable.Wait()
	}
}

func (c *BufferedConn) dropFirstLocked() {
	l := c.first
	if c.first = l.next; c.first == nil {
		c.last = nil
	}
	c.budget.giveBack(l)
}

func (c *BufferedConn) readLocked(p []byte) (n int) {
	for n < len(p) && c.first != nil {
		l := c.first
		k := copy(p[n:], l.data[l.read:l.written])
		n += k
		if l.read += k; l.read == l.written {
			c.dropFirstLocked()
		}
	}
	c.inBytes -= n
	c.budget.add(-n)
	if c.inBytes > 0 {
		c.readable.Signal() // another reader may be waiting for the rest
	}
	return n
}

// Write implements net.Conn. It returns when all of p has been taken over for sending, as a socket does; an error that comes
// later shows in the next call.
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
		room := sendBuffer - c.outBytes
		if room <= 0 {
			c.writable.Wait()
			continue
		}
		k := min(room, len(p)-n)
		c.appendLocked(p[n : n+k])
		n += k
		c.mu.Unlock()
		c.ready()
		c.mu.Lock()
	}
	c.writing = false
	c.writable.Signal()
	c.mu.Unlock()
	return n, err
}

// appendLocked copies p into out: the last piece is filled up, and what is left begins pieces of its own.
func (c *BufferedConn) appendLocked(p []byte) {
	c.outBytes += len(p)
	if last := len(c.out) - 1; last >= 0 {
		k := min(MaxPacket-len(c.out[last]), len(p))
		c.out[last] = append(c.out[last], p[:k]...)
		p = p[k:]
	}
	for len(p) > 0 {
		k := min(MaxPacket, len(p))
		c.out = append(c.out, append([]byte(nil), p[:k]...))
		p = p[k:]
	}
}

func (c *BufferedConn) writeErrLocked() error {
	switch {
	case c.closed:
		return c.opError("write", net.ErrClosed)
	case c.writeDeadline.passed:
		return c.opError("write", os.ErrDeadlineExceeded)
	case c.inErr == io.EOF: //nolint:errorlint // a failure that wraps EOF is no clean end
		return c.opError("write", io.ErrClosedPipe)
	case c.inErr != nil:
		return c.opError("write", c.inErr)
	}
	return nil
}

// Close implements net.Conn. What has been written is still sent, as far as the tunnel lets it (see linger); Read and Write return at once with net.ErrClosed.
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
	c.wakeLocked()
	c.mu.Unlock()
	c.ready()
	return nil
}

// LocalAddr implements net.Conn.
func (c *BufferedConn) LocalAddr() net.Addr { return c.local }

// RemoteAddr implements net.Conn.
func (c *BufferedConn) RemoteAddr() net.Addr { return c.remote }

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
	return &net.OpError{Op: op, Net: "tcp", Source: c.local, Addr: c.remote, Err: err}
}

// deadline wakes a condition when its time has come. It is used under the condition's lock.
type deadline struct {
	cond  *sync.Cond
	timer *time.Timer // nil when none is set, or when it has passed
	// passed is set by the timer and not worked out from the clock: a wall clock that is set back between the two would
	// leave a waiter asleep for ever.
	passed bool
}

func (d *deadline) set(t time.Time) {
	d.stop()
	d.passed = false
	if t.IsZero() {
		return
	}
	wait := time.Until(t)
	if wait <= 0 {
		d.passed = true
		d.cond.Broadcast()
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(wait, func() {
		d.cond.L.Lock()
		defer d.cond.L.Unlock()
		// One that fired while it was being replaced says nothing.
		if d.timer == timer {
			d.timer, d.passed = nil, true
			d.cond.Broadcast()
		}
	})
	d.timer = timer
}

func (d *deadline) stop() {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
}

// Addr is the address of one end of a tunnelled connection.
type Addr struct {
	// Name is what the address says: "cluster/host:port" for the far end, "tunnel" or the like for the near one.
	Name string
}

var _ net.Addr = Addr{}

// Network implements net.Addr.
func (Addr) Network() string { return "tcp" }

// String implements net.Addr.
func (a Addr) String() string { return a.Name }
