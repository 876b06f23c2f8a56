// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/dialer"
)

// connector establishes connections to one API server: it dials, and then negotiates TLS.
type connector struct {
	cluster *cluster.Cluster
	dial    dialer.DialFunc
	tls     *tls.Config
	// timeout limits both steps together: http.Transport passes on neither the deadline nor the end
	// of the request that needs the connection.
	timeout time.Duration
	metrics *clusterMetrics
	// gate limits the dials to the cluster.
	gate dialGate
	// perRequest is set if a connection serves only the request for which it is made. A dial then
	// ends with its request.
	perRequest bool
	// liveness is for connections that negotiate HTTP/2.
	liveness liveness
	// open counts the established connections.
	open atomic.Int64
	// closeIdle closes the HTTP/2 connections that carry no request. It is nil without HTTP/2.
	closeIdle func()
}

// closeIdleAbove is the number of HTTP/2 connections above which idle ones are closed. A transport
// dials when its connections can take no further request. A hostile API server that allows no
// streams, or withdraws them, could make it collect a useless connection for each request. An
// honest one allows at least 100 streams for each connection.
const closeIdleAbove = 64

// dialTLS is an http.Transport's DialTLSContext.
func (c *connector) dialTLS(ctx context.Context, network, address string) (net.Conn, error) {
	ctx, span := c.startSpan(ctx)
	conn, err := c.enterAndConnect(ctx, network, address)
	endDialSpan(span, err)
	if err != nil {
		return nil, err
	}
	return conn, nil
}

// enterAndConnect waits until the cluster may be dialed, and connects.
func (c *connector) enterAndConnect(ctx context.Context, network, address string) (*tls.Conn, error) {
	request := requestContextOf(ctx)
	leave, err := c.gate.enter(request, c.timeout)
	if err != nil {
		return nil, err
	}
	defer leave()
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	if c.perRequest {
		defer context.AfterFunc(request, cancel)()
	}
	conn, err := c.connect(ctx, network, address)
	stage, result := dialOutcome(err)
	c.metrics.dialEnded(string(c.cluster.Route), stage, result, time.Since(start))
	return conn, err
}

// dialOutcome returns the result of a dial, and the stage at which it has failed, as in metrics.
func dialOutcome(err error) (stage, result string) {
	if err == nil {
		return "", "success"
	}
	var de *dialer.Error
	if errors.As(err, &de) {
		stage = string(de.Stage)
	}
	return stage, "failure"
}

// maxAttempts is how many agents are tried for one connection, if TLS fails or hangs.
const maxAttempts = 3

// connect dials and negotiates TLS. If there is another way to the cluster, such as another agent,
// it tries that one, too.
func (c *connector) connect(ctx context.Context, network, address string) (*tls.Conn, error) {
	var failure error
	for attempt := 1; ; attempt++ {
		dialCtx, outcome := dialer.WithAttempt(ctx)
		raw, err := c.dial(dialCtx, network, address)
		traceAgent(ctx, outcome.Agent())
		if err != nil {
			return nil, cmp.Or(failure, err) // TLS comes later than the dial, so its failure says more
		}
		last := attempt == maxAttempts || !outcome.HasAlternative()
		conn, err := c.handshake(ctx, raw, address, outcome, last)
		if err == nil {
			return conn, nil
		}
		failure = err
		traceFailure(ctx, err)
		if last || ctx.Err() != nil {
			return nil, failure
		}
	}
}

// handshake negotiates TLS, and reports the outcome. It closes raw if it fails. Unless this is the
// last attempt, a part of the time is left for others.
func (c *connector) handshake(ctx context.Context, raw net.Conn, address string, outcome *dialer.Attempt, last bool) (*tls.Conn, error) {
	if !last {
		limited, cancel := context.WithTimeout(ctx, c.timeout/maxAttempts)
		defer cancel()
		ctx = limited
	}
	counted := c.count(raw)
	conn := tls.Client(counted, c.tls)
	if err := conn.HandshakeContext(ctx); err != nil {
		if !errors.Is(ctx.Err(), context.Canceled) { // a canceled request says nothing about the agent
			outcome.Report(fmt.Errorf("the TLS handshake failed: %w", err))
		}
		_ = counted.Close() // the error of the handshake is the one to report
		return nil, &dialer.Error{Cluster: c.cluster.Name, Stage: dialer.StageTLS, Address: address, Err: err}
	}
	outcome.Report(nil)
	counted.setEstablished()
	if conn.ConnectionState().NegotiatedProtocol == "h2" {
		if c.liveness.tick > 0 {
			counted.watch(outcome, c.liveness.tick)
		}
		if c.closeIdle != nil && c.open.Load() > closeIdleAbove {
			c.closeIdle()
		}
	}
	return conn, nil
}

func (c *connector) count(conn net.Conn) *countedConn {
	c.metrics.addConnections(string(c.cluster.Route), 1)
	return &countedConn{Conn: conn, owner: c}
}

// countedConn is a connection of a connector, which counts it until it is closed.
type countedConn struct {
	net.Conn
	owner       *connector
	established atomic.Bool
	closed      atomic.Bool
	once        sync.Once
	// watched is nil unless the connection is closed when nothing arrives on it.
	watched *silenceWatch
}

// setEstablished reports that the TLS handshake is complete. Call it once, before anything can call
// Close.
func (c *countedConn) setEstablished() {
	c.established.Store(true)
	c.owner.open.Add(1)
}

func (c *countedConn) Close() error {
	c.once.Do(func() {
		c.closed.Store(true)
		if c.watched != nil {
			c.watched.timer.Stop()
		}
		if c.established.Load() {
			c.owner.open.Add(-1)
		}
		c.owner.metrics.addConnections(string(c.owner.cluster.Route), -1)
	})
	return c.Conn.Close()
}
