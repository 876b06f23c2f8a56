// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package dialer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
)

// Dialer opens connections to the API server of one managed cluster. It is safe for concurrent use.
type Dialer interface {
	// DialContext connects to address. ctx bounds establishment only: canceling it after DialContext
	// has returned does nothing to the connection. Every failure is an *Error. After Close,
	// DialContext fails with an error that wraps net.ErrClosed.
	DialContext(ctx context.Context, network, address string) (net.Conn, error)

	// Close cancels the dials under way and closes the connections that are still open. When it
	// returns, no dial is running, and Read and Write of every connection fail. It does not wait for
	// a peer: a tunneled connection sends what it still has to send in the background, and the
	// Konnectivity or tunnel.Server that the Dialer belongs to waits for that when it ends.
	//
	// Close is idempotent, and every call returns only when all of this is done.
	Close() error
}

// DialFunc opens one connection. ctx bounds establishment only.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// New returns a Dialer that uses dial. It adds Close, and for that it keeps track of the dials
// under way and of the open connections. If an error of dial is not an *Error, it becomes the cause
// of one at StageEndpoint.
//
// dial must return soon after its ctx has ended, and Close of its connections must not wait for the
// peer.
func New(cluster string, dial DialFunc) Dialer {
	ctx, cancel := context.WithCancelCause(context.Background())
	return &trackingDialer{cluster: cluster, dial: dial, ctx: ctx, cancel: cancel, conns: map[*trackedConn]struct{}{}}
}

type trackingDialer struct {
	cluster string
	dial    DialFunc
	// ctx ends with Close, and cancels every dial under way.
	ctx    context.Context
	cancel context.CancelCauseFunc

	mu     sync.Mutex
	closed bool
	conns  map[*trackedConn]struct{}
	// dialing counts the dials under way. Add is called only under mu and while not closed, so that
	// it never races with Wait.
	dialing sync.WaitGroup
}

var _ Dialer = (*trackingDialer)(nil)

// DialContext implements Dialer.
func (d *trackingDialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return nil, d.wrap(address, net.ErrClosed)
	}
	d.dialing.Add(1)
	d.mu.Unlock()
	defer d.dialing.Done()

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(d.ctx, func() { cancel(net.ErrClosed) })()

	raw, err := d.dial(ctx, network, address)
	if err != nil {
		switch cause := context.Cause(ctx); {
		case errors.Is(cause, net.ErrClosed):
			err = fmt.Errorf("the dialer was closed during the dial: %w", net.ErrClosed)
		case cause != nil && !errors.Is(err, cause):
			// Some clients report the deadline with which ctx stopped them, and not ctx itself.
			err = fmt.Errorf("%w: %w", err, cause)
		}
		return nil, d.wrap(address, err)
	}
	conn := &trackedConn{Conn: raw, dialer: d}
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return nil, d.wrap(address, errors.Join(net.ErrClosed, raw.Close()))
	}
	d.conns[conn] = struct{}{}
	d.mu.Unlock()
	return conn, nil
}

// wrap returns err as an *Error.
func (d *trackingDialer) wrap(address string, err error) error {
	var typed *Error
	if errors.As(err, &typed) {
		return err
	}
	return &Error{Cluster: d.cluster, Stage: StageEndpoint, Address: address, Err: err}
}

// Close implements Dialer.
func (d *trackingDialer) Close() error {
	d.mu.Lock()
	d.closed = true
	open := make([]*trackedConn, 0, len(d.conns))
	for c := range d.conns {
		open = append(open, c)
	}
	d.mu.Unlock()

	d.cancel(net.ErrClosed)
	var errs []error
	for _, c := range open {
		if err := c.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	d.dialing.Wait()
	return errors.Join(errs...)
}

func (d *trackingDialer) remove(c *trackedConn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.conns, c)
}

// trackedConn removes itself from its dialer when it is closed.
type trackedConn struct {
	net.Conn
	dialer *trackingDialer
}

// Close implements net.Conn.
func (c *trackedConn) Close() error {
	c.dialer.remove(c)
	return c.Conn.Close()
}
