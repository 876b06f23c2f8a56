// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package dialer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// Dialer opens connections to the API server of one managed cluster. It is safe for concurrent use.
type Dialer interface {
	// DialContext connects to address. ctx bounds establishment only: once it has returned, cancelling ctx does
	// nothing to the connection. Every failure is an *Error. After Close it fails with an error that wraps
	// net.ErrClosed.
	DialContext(ctx context.Context, network, address string) (net.Conn, error)

	// Close cancels the dials under way, closes the connections that are still open, and waits for what serves
	// them. It is idempotent; every call returns only when all that is done.
	Close() error
}

// Stage says how far on the way to an API server a dial came.
type Stage string

// The stages, in the order in which a dial passes them.
const (
	// StageTunnel: no agent of the cluster is connected, or the tunnel server cannot be reached.
	StageTunnel Stage = "tunnel"
	// StageAgent: an agent was asked to dial, and died or did not answer.
	StageAgent Stage = "agent"
	// StageEndpoint: the API server could not be dialled, by the gateway or by the agent on its behalf.
	StageEndpoint Stage = "endpoint"
	// StageTLS: the connection stands, and the TLS handshake with the API server failed.
	StageTLS Stage = "tls"
)

// Error is a dial that failed.
type Error struct {
	// Cluster is the name of the managed cluster.
	Cluster string
	// Stage is where the dial ended.
	Stage Stage
	// Address is what was to be dialled, as host:port.
	Address string
	// Err is the cause; never nil.
	Err error
}

// Error implements error.
func (e *Error) Error() string {
	switch e.Stage {
	case StageTunnel, StageAgent:
		return fmt.Sprintf("cluster %q: %s: %v", e.Cluster, e.Stage, e.Err)
	default:
		return fmt.Sprintf("cluster %q: %s %s: %v", e.Cluster, e.Stage, e.Address, e.Err)
	}
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// NoAgentError is the cause of a dial at StageTunnel when no agent of the cluster is connected.
type NoAgentError struct {
	// LastSeen is when the last agent of the cluster went away; zero when none has been seen by this process.
	LastSeen time.Time
	// Since is when the absence began as far as this process can tell: LastSeen, or when it began to accept agents.
	// Zero means that it cannot tell.
	Since time.Time
	// External is set when a konnectivity-server said so; this process then does not see agents at all.
	External bool
}

// Error implements error.
func (e *NoAgentError) Error() string {
	switch {
	case e.External:
		return "the konnectivity-server has no agent for it"
	case e.LastSeen.IsZero():
		return "no agent is connected, and none has been since the gateway started"
	}
	return "no agent is connected; the last one went away at " + e.LastSeen.UTC().Format(time.RFC3339)
}

var (
	// ErrBufferFull ends a tunnelled connection whose consumer has stopped reading for longer than its buffer lasts, or than what
	// is left of its cluster's Budget.
	ErrBufferFull = errors.New("the receive buffer of the tunnelled connection is full: its consumer has stopped reading or is too slow")
	// ErrAddressNotAllowed is the cause of a dial through a tunnel to anything but the cluster's registered API server.
	ErrAddressNotAllowed = errors.New("the address is not the cluster's registered API server")
)

// DialFunc opens one connection; ctx bounds establishment only.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// New makes a Dialer of a dial function: it adds Close, and with it the tracking of the dials under way and of the
// connections that are open. Errors of dial that are not an *Error become one at StageEndpoint.
func New(cluster string, dial DialFunc) Dialer {
	ctx, cancel := context.WithCancelCause(context.Background())
	return &tracked{cluster: cluster, dial: dial, ctx: ctx, cancel: cancel, conns: map[*trackedConn]struct{}{}}
}

type tracked struct {
	cluster string
	dial    DialFunc
	// ctx ends with Close, and with it every dial under way.
	ctx    context.Context
	cancel context.CancelCauseFunc

	mu     sync.Mutex
	closed bool
	conns  map[*trackedConn]struct{}
	// busy counts dials under way. Add happens under mu and only while not closed, so that it never races with Wait.
	busy sync.WaitGroup
}

var _ Dialer = (*tracked)(nil)

func (d *tracked) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return nil, d.fail(address, net.ErrClosed)
	}
	d.busy.Add(1)
	d.mu.Unlock()
	defer d.busy.Done()

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(d.ctx, func() { cancel(net.ErrClosed) })()

	raw, err := d.dial(ctx, network, address)
	if err != nil {
		switch cause := context.Cause(ctx); {
		case errors.Is(cause, net.ErrClosed):
			err = fmt.Errorf("the dialer was closed meanwhile: %w", net.ErrClosed)
		case cause != nil && !errors.Is(err, cause):
			// Some clients tell of the deadline by which ctx stopped them, and not of ctx.
			err = fmt.Errorf("%w: %w", err, cause)
		}
		return nil, d.fail(address, err)
	}
	conn := &trackedConn{Conn: raw, owner: d}
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return nil, d.fail(address, errors.Join(net.ErrClosed, raw.Close()))
	}
	d.conns[conn] = struct{}{}
	d.mu.Unlock()
	return conn, nil
}

func (d *tracked) fail(address string, err error) error {
	var typed *Error
	if errors.As(err, &typed) {
		return err
	}
	return &Error{Cluster: d.cluster, Stage: StageEndpoint, Address: address, Err: err}
}

func (d *tracked) Close() error {
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
	d.busy.Wait()
	return errors.Join(errs...)
}

func (d *tracked) forget(c *trackedConn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.conns, c)
}

// trackedConn tells its dialer when it is closed.
type trackedConn struct {
	net.Conn
	owner *tracked
}

func (c *trackedConn) Close() error {
	c.owner.forget(c)
	return c.Conn.Close()
}
