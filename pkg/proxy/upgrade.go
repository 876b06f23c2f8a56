// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// isUpgrade reports whether a message asks to leave HTTP, or does so.
func isUpgrade(h http.Header) bool { return upgradeProtocol(h) != "" }

// upgradeProtocol returns the protocol that a request asks for, or that an answer switches to. It
// is empty when the message does neither.
func upgradeProtocol(h http.Header) string {
	for _, value := range h["Connection"] {
		for token := range strings.SplitSeq(value, ",") {
			if strings.EqualFold(strings.TrimSpace(token), "upgrade") {
				return h.Get("Upgrade")
			}
		}
	}
	return ""
}

var errUnexpectedUpgrade = errors.New("it switched to another protocol without being asked to")

// switchProtocols handles an answer with which the cluster accepts an upgrade.
func (x *exchange) switchProtocols(resp *http.Response) error {
	x.upgraded = resp.Body
	// ReverseProxy compares the two protocols, and would accept a switch to none in answer to a
	// request for none.
	if !isUpgrade(resp.Request.Header) || !isUpgrade(resp.Header) {
		return errUnexpectedUpgrade
	}
	context.AfterFunc(x.ctx, x.closeUpgraded)
	if conn, ok := resp.Body.(io.ReadWriteCloser); ok {
		upgraded := &upgradedConn{ReadWriteCloser: conn, ended: x.limitClient}
		x.followFrames(upgraded, resp.Header)
		resp.Body = upgraded
	}
	return nil
}

// lingerTimeout is how long a client may take to read the rest after the cluster has closed an
// upgraded connection, and to close it.
const lingerTimeout = 30 * time.Second

// limitClient limits how long a client can keep a connection that the cluster has closed.
func (x *exchange) limitClient() {
	if x.client == nil {
		return
	}
	timeout := lingerTimeout
	if x.ctx.Err() != nil {
		timeout = closingTimeout
	}
	_ = x.client.SetReadDeadline(time.Now().Add(timeout)) // it has deadlines
}

// hijackedWriter is the ResponseWriter of an upgrade. It keeps the client's connection.
type hijackedWriter struct {
	http.ResponseWriter
	exchange *exchange
}

var _ http.Hijacker = (*hijackedWriter)(nil)

// Unwrap implements what http.ResponseController requires.
func (w *hijackedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Hijack implements http.Hijacker.
func (w *hijackedWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err == nil {
		x := w.exchange
		x.client = conn
		// ReverseProxy waits for the client after the cluster has closed its connection.
		context.AfterFunc(x.ctx, func() {
			end := time.Unix(1, 0)
			if x.tellsClient {
				end = time.Now().Add(closingTimeout)
			}
			_ = conn.SetReadDeadline(end)
		})
	}
	return conn, rw, err
}

// upgradedConn is the connection to the cluster of an exchange that has left HTTP. A slow client
// may have much left to read when the cluster closes it. If the client sends something meanwhile,
// such as a ping, that cannot be delivered, but it must not end the exchange: ReverseProxy would
// close both connections, and the client would lose the rest. (Also, a connection that is closed
// while something arrives is reset, and what is still in its send buffer is lost.)
type upgradedConn struct {
	io.ReadWriteCloser
	// ended is called when nothing more can be read.
	ended func()
	// reader, if set, is read instead of the connection.
	reader io.Reader
	// sent, if set, is called with what is written.
	sent func([]byte)
	// closing, if set, is called when nothing more can be read. It returns what the client gets then.
	closing func(error) []byte
	rest    []byte
	err     error
}

// Read implements io.Reader.
func (c *upgradedConn) Read(p []byte) (n int, err error) {
	if c.err == nil {
		if c.reader != nil {
			n, err = c.reader.Read(p)
		} else {
			n, err = c.ReadWriteCloser.Read(p)
		}
		if err == nil {
			return n, nil
		}
		c.err = err
		if c.closing != nil {
			c.rest = c.closing(err)
		}
		if len(c.rest) > 0 {
			c.err = io.EOF // ReverseProxy then waits for the client, which reads the rest
		}
		c.ended()
	}
	if n == 0 {
		n = copy(p, c.rest)
		c.rest = c.rest[n:]
	}
	if len(c.rest) > 0 {
		return n, nil
	}
	return n, c.err
}

// Write implements io.Writer. It discards what cannot be written: reading tells whether the
// connection is at its end.
func (c *upgradedConn) Write(p []byte) (int, error) {
	if c.sent != nil {
		c.sent(p)
	}
	if n, err := c.ReadWriteCloser.Write(p); err == nil {
		return n, nil
	}
	return len(p), nil
}

// CloseWrite closes the writing side.
func (c *upgradedConn) CloseWrite() error {
	if half, ok := c.ReadWriteCloser.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported // then the exchange ends
}

// becomeStream lifts the deadline of an upgrade that the cluster has answered, and counts it among
// the streams.
func (x *exchange) becomeStream() error {
	if !x.deadline.Stop() {
		return errDeadline // it has just passed, and x.ctx ends
	}
	x.lease.becomeStream()
	x.turn.end()
	x.startStream()
	if x.handler.streamsCtx.Err() != nil {
		x.cancel(errShuttingDown)
		return errShuttingDown
	}
	return nil
}

// closeUpgraded closes the connection to the cluster when the exchange ends. ReverseProxy does not
// close it when it fails to take over the client's connection.
func (x *exchange) closeUpgraded() {
	if x.upgraded != nil {
		_ = x.upgraded.Close()
	}
}
