// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"crypto/tls"
	"errors"
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
	// open counts the established connections.
	open atomic.Int64
}

// dialTLS is an http.Transport's DialTLSContext.
func (c *connector) dialTLS(ctx context.Context, network, address string) (net.Conn, error) {
	request := requestContextOf(ctx)
	if err := c.gate.enter(request, c.timeout); err != nil {
		return nil, err
	}
	defer c.gate.leave()
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	if c.perRequest {
		defer context.AfterFunc(request, cancel)()
	}
	conn, err := c.connect(ctx, network, address)
	stage, result := "", "success"
	if err != nil {
		result = "failure"
		var de *dialer.Error
		if errors.As(err, &de) {
			stage = string(de.Stage)
		}
	}
	c.metrics.dialEnded(string(c.cluster.Route), stage, result, time.Since(start))
	if err != nil {
		return nil, err
	}
	return conn, nil
}

func (c *connector) connect(ctx context.Context, network, address string) (*tls.Conn, error) {
	raw, err := c.dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	counted := c.count(raw)
	conn := tls.Client(counted, c.tls)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = counted.Close() // the error of the handshake is the one to report
		return nil, &dialer.Error{Cluster: c.cluster.Name, Stage: dialer.StageTLS, Address: address, Err: err}
	}
	counted.setEstablished()
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
	once        sync.Once
}

// setEstablished reports that the TLS handshake is complete. Call it once, before anything can call
// Close.
func (c *countedConn) setEstablished() {
	c.established.Store(true)
	c.owner.open.Add(1)
}

func (c *countedConn) Close() error {
	c.once.Do(func() {
		if c.established.Load() {
			c.owner.open.Add(-1)
		}
		c.owner.metrics.addConnections(string(c.owner.cluster.Route), -1)
	})
	return c.Conn.Close()
}
