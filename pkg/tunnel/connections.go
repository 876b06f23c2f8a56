// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"fmt"
	"net"
	"slices"
	"sync"
	"syscall"

	"google.golang.org/grpc/credentials"
)

// maxConnections bounds the connections of one cluster's agents, with and without a stream: agents that have reached maxSessions, and try
// again and again, must not take the gateway's descriptors. It leaves room for those that are refused, which agents soon close.
const maxConnections = 2 * maxSessions

// connections counts the connections by the subject of their certificate. It is safe for concurrent use.
//
// Those that are closed are found by looking, and not by a wrapper's Close: gRPC does not close what it was given in all cases, and
// with anything but a *net.TCPConn it sets no TCP_USER_TIMEOUT.
type connections struct {
	mu   sync.Mutex
	open map[string][]net.Conn
}

// admit is whether there is room for one more.
func (c *connections) admit(subject string, conn net.Conn) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	open := slices.DeleteFunc(c.open[subject], closed)
	if len(open) >= maxConnections {
		c.open[subject] = open
		return fmt.Errorf("there are %d connections with certificates of %q already", len(open), subject)
	}
	if c.open == nil {
		c.open = map[string][]net.Conn{}
	}
	c.open[subject] = append(open, conn)
	return nil
}

// forget drops what is closed, so that subjects which do not come back take no memory.
func (c *connections) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for subject, conns := range c.open {
		if open := slices.DeleteFunc(conns, closed); len(open) > 0 {
			c.open[subject] = open
		} else {
			delete(c.open, subject)
		}
	}
}

// closed is whether a connection has been closed on this side.
func closed(conn net.Conn) bool {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return true // it cannot be told, so it is not counted; every TCP connection can
	}
	raw, err := sc.SyscallConn()
	return err != nil || raw.Control(func(uintptr) {}) != nil
}

// bounded refuses connections in the TLS handshake, which ends them.
type bounded struct {
	credentials.TransportCredentials
	server *Server
}

func (b bounded) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := b.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		return conn, info, err
	}
	auth, ok := info.(authWithConn)
	if !ok || len(auth.State.PeerCertificates) == 0 {
		return conn, info, nil // identify refuses it
	}
	if err := b.server.connections.admit(auth.State.PeerCertificates[0].Subject.String(), raw); err != nil {
		b.server.cfg.Logger.Info("Refused a connection", "address", raw.RemoteAddr().String(), "reason", err.Error())
		_ = conn.Close() // as raw is by gRPC
		return nil, nil, err
	}
	return conn, info, nil
}

// Clone implements credentials.TransportCredentials.
func (b bounded) Clone() credentials.TransportCredentials {
	return bounded{b.TransportCredentials.Clone(), b.server}
}
