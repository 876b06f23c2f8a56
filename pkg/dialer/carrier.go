// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package dialer

import (
	"io"
	"time"
)

// The methods of this file are the carrier's side of a BufferedConn.

// Deliver gives the reader a copy of p. It never blocks. If the buffer is full, it ends the
// connection and returns ErrBufferFull; TakeOutgoing then tells the carrier to close it. On a
// connection that has already ended it does nothing.
func (c *BufferedConn) Deliver(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	c.mu.Lock()
	if c.closed || c.remoteErr != nil {
		c.mu.Unlock()
		return nil
	}
	if c.received.bytes+len(p) <= c.cfg.ReceiveBuffer && c.account.take(c.received.bytes, len(p), MinReceiveBuffer) {
		c.received.write(p)
		c.readable.Signal()
		c.mu.Unlock()
		return nil
	}
	// The backlog is dropped as well: the stream is truncated in any case, and the memory is
	// needed.
	c.dropReceivedLocked()
	c.outgoing.drop()
	c.remoteErr = ErrBufferFull
	c.wakeAllLocked()
	c.mu.Unlock()
	c.cfg.Ready()
	return ErrBufferFull
}

// Accept is Deliver for a carrier that can wait. It never ends the connection: it takes p in any
// case. If the connection then holds as much as it should, Accept returns a channel, and the
// carrier must not call Accept again until the channel is closed: the client has read about half of
// it, or the connection has ended. A carrier that cannot wait any longer calls Deliver.
func (c *BufferedConn) Accept(p []byte) (resume <-chan struct{}) {
	if len(p) == 0 {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.remoteErr != nil {
		return nil
	}
	held, n := c.received.bytes, len(p)
	fits := held+n < min(acceptWindow, c.cfg.ReceiveBuffer) && c.account.take(held, n, minWindow)
	if !fits {
		c.account.add(n)
	}
	c.received.write(p)
	c.readable.Signal()
	if fits {
		return nil
	}
	c.resumeAt = c.received.bytes / 2
	if c.resume == nil {
		c.resume = make(chan struct{})
	}
	return c.resume
}

// CloseRemote reports that the other end has closed the connection. The reader gets what is
// buffered, and then err (nil: io.EOF). Writes fail at once.
func (c *BufferedConn) CloseRemote(err error) {
	if err == nil {
		err = io.EOF
	}
	c.mu.Lock()
	if c.remoteErr == nil {
		c.remoteErr = err
	}
	c.outgoing.drop()
	c.finished = true
	c.resumeLocked()
	c.wakeAllLocked()
	c.mu.Unlock()
}

// TakeOutgoing returns the next bytes to send, at most MaxPacket. more reports whether there is
// more to take. end is true, once only, when this side has ended the connection and the carrier has
// to close it.
func (c *BufferedConn) TakeOutgoing() (p []byte, more, end bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.finished {
		return nil, false, false
	}
	if p = c.outgoing.take(); p != nil {
		c.lastTaken = time.Now()
		// All waiters: a single one might be a Write that waits for its turn, and not the one that
		// needs the room.
		c.writable.Broadcast()
	}
	if c.outgoing.bytes > 0 || !c.closed && c.remoteErr == nil {
		return p, c.outgoing.bytes > 0, false
	}
	if wait := c.cfg.Linger - time.Since(c.lastTaken); wait > 0 && c.remoteErr == nil {
		time.AfterFunc(wait, c.cfg.Ready)
		return p, false, false
	}
	c.finished = true
	return p, false, true
}
