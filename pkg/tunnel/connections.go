// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc/credentials"
)

// connections bounds the connections of one cluster's agents, with and without a stream, by the
// subject of their certificate. Agents that are refused for MaxStreams and try again and again must
// not use up the gateway's file descriptors. The limit leaves room for such connections, which
// agents soon close. It is safe for concurrent use.
//
// Closed connections are found by testing them. A wrapper's Close would not do: gRPC does not
// always close the connection that it was given, and it sets no TCP_USER_TIMEOUT on anything but a
// *net.TCPConn.
type connections struct {
	limit int

	mu   sync.Mutex
	open map[string][]net.Conn
}

// admit counts a connection, or returns an error if there are too many with this subject.
func (c *connections) admit(subject string, conn net.Conn) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	open := slices.DeleteFunc(c.open[subject], isClosed)
	if len(open) >= c.limit {
		c.open[subject] = open
		return fmt.Errorf("there are already %d connections with certificates of %q, which is the limit", len(open), subject)
	}
	if c.open == nil {
		c.open = map[string][]net.Conn{}
	}
	c.open[subject] = append(open, conn)
	return nil
}

// removeClosed removes closed connections, so that subjects that do not connect again use no
// memory.
func (c *connections) removeClosed() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for subject, conns := range c.open {
		if open := slices.DeleteFunc(conns, isClosed); len(open) > 0 {
			c.open[subject] = open
		} else {
			delete(c.open, subject)
		}
	}
}

// isClosed reports whether a connection has been closed on this side.
func isClosed(conn net.Conn) bool {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return true // not a TCP connection: it cannot be tested, so it is not counted
	}
	raw, err := sc.SyscallConn()
	return err != nil || raw.Control(func(uintptr) {}) != nil
}

// boundedCredentials refuse connections in excess of two limits: too many that have not shown a
// certificate at the beginning of the TLS handshake, and too many of one owner at its end. There is
// no stream yet, so the agent learns no reason: it sees its connection end.
type boundedCredentials struct {
	credentials.TransportCredentials
	server *Server
}

// owner returns for whom a certificate was issued. The rest of its subject differs between
// certificates of one owner.
func owner(cert *x509.Certificate) string {
	return pkix.Name{Organization: cert.Subject.Organization, CommonName: cert.Subject.CommonName}.String()
}

// ServerHandshake implements credentials.TransportCredentials.
func (b boundedCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if err := b.server.handshakes.begin(raw); err != nil {
		b.refuse(raw, err)
		return nil, nil, err
	}
	conn, info, err := b.TransportCredentials.ServerHandshake(raw)
	if !b.server.handshakes.end(raw) {
		b.refuse(raw, errMadeRoom)
	}
	if err != nil {
		return conn, info, err
	}
	auth, ok := info.(authWithConn)
	if !ok || len(auth.State.PeerCertificates) == 0 {
		return conn, info, nil // identify refuses it
	}
	leaf := auth.State.PeerCertificates[0]
	if err := b.server.connections.admit(owner(leaf), raw); err != nil {
		if cluster, err := ClusterOf(leaf); err == nil {
			b.server.refuse(cluster, fmt.Sprintf("the agents of cluster %q already have %d connections to this replica of the gateway, which is the limit",
				cluster, b.server.connections.limit))
		}
		b.refuse(raw, err)
		_ = conn.Close() // gRPC closes raw
		return nil, nil, err
	}
	return conn, info, nil
}

// refuse logs that a connection is refused.
func (b boundedCredentials) refuse(raw net.Conn, reason error) {
	b.server.refusalLog.log(b.server.cfg.Logger, refusalKey{message: "Refused a connection of an agent", reason: reason.Error()}, raw.RemoteAddr().String(), time.Now())
}

// Clone implements credentials.TransportCredentials.
func (b boundedCredentials) Clone() credentials.TransportCredentials {
	return boundedCredentials{b.TransportCredentials.Clone(), b.server}
}
