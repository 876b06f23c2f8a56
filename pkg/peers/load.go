// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package peers

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync/atomic"

	"golang.org/x/net/http2"
)

// sent is one request that another replica has: until its answer has been read, or until its
// upgraded connection is closed.
type sent struct {
	peers *Peers
	to    *peer
	ended atomic.Bool
	// cancel, if set, frees what the request holds.
	cancel context.CancelCauseFunc
}

// begin counts a request.
func (p *Peers) begin(to *peer) *sent {
	to.load.Add(1)
	return &sent{peers: p, to: to}
}

// end stops to count the request. It can be called more than once.
func (s *sent) end() {
	if s.ended.CompareAndSwap(false, true) {
		s.to.load.Add(-1)
		if s.cancel != nil {
			s.cancel(nil)
		}
	}
}

// worked records that the replica has answered.
func (s *sent) worked() {
	if s.to.failed {
		s.peers.setFailed(s.to.address, false)
	}
}

// broke records the failure of a connection, unless the request alone has failed.
func (s *sent) broke(ctx context.Context, err error) {
	var stream http2.StreamError
	if ctx.Err() != nil || errors.As(err, &stream) {
		return
	}
	s.peers.setFailed(s.to.address, true)
	s.peers.cfg.Logger.V(2).Info("A connection to another replica failed", "address", s.to.address, "err", err)
}

// follow counts the request until its answer has been read.
func (s *sent) follow(ctx context.Context, resp *http.Response) {
	body := answer{ReadCloser: resp.Body, ctx: ctx, sent: s}
	if up, ok := resp.Body.(upgraded); ok && resp.StatusCode == http.StatusSwitchingProtocols {
		resp.Body = &upgradedAnswer{answer: body, up: up}
		return
	}
	resp.Body = &body
}

// answer is the body of an answer of another replica.
type answer struct {
	io.ReadCloser
	ctx  context.Context //nolint:containedctx // that of the request, which is not kept longer
	sent *sent
}

// Read implements io.Reader.
func (a *answer) Read(p []byte) (int, error) {
	n, err := a.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		a.sent.broke(a.ctx, err)
	}
	return n, err
}

// Close implements io.Closer.
func (a *answer) Close() error {
	a.sent.end()
	return a.ReadCloser.Close()
}

// upgraded is the body of an answer with which a connection leaves HTTP.
type upgraded interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// upgradedAnswer is such a body of another replica.
type upgradedAnswer struct {
	answer
	up upgraded
}

var _ upgraded = (*upgradedAnswer)(nil)

// Read implements io.Reader. The end of an upgraded connection says nothing about the replica.
func (a *upgradedAnswer) Read(p []byte) (int, error) { return a.up.Read(p) }

// Write implements io.Writer.
func (a *upgradedAnswer) Write(p []byte) (int, error) { return a.up.Write(p) }

// CloseWrite closes one direction of the connection.
func (a *upgradedAnswer) CloseWrite() error { return a.up.CloseWrite() }

// loadedConn is a connection through another replica.
type loadedConn struct {
	readConn
	sent *sent
}

// Close implements net.Conn.
func (c *loadedConn) Close() error {
	c.sent.end()
	return c.readConn.Close()
}
