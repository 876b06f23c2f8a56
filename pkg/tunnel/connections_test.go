// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"crypto/tls"
	"io"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/oam-dev/cluster-gateway/pkg/dialer"
)

// connectOnly makes a connection, as HTTP/2 has it, and no stream. It returns when the server has said that it accepts it, or the error
// with which it ended.
func (g *gateway) connectOnly(t *testing.T, cfg *tls.Config) (*tls.Conn, error) {
	t.Helper()
	cfg = cfg.Clone()
	cfg.NextProtos = []string{"h2"}
	conn, err := tls.Dial("tcp", g.address, cfg)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = conn.Close() }) // many are closed already
	if err := conn.SetDeadline(time.Now().Add(hang)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		return nil, err
	}
	framer := http2.NewFramer(conn, conn)
	if err := framer.WriteSettings(); err != nil {
		return nil, err
	}
	_, err = framer.ReadFrame()
	return conn, err
}

// A holder of an agent's certificate cannot take the gateway's descriptors by connecting and doing nothing. Those of other clusters
// connect meanwhile, and its own do again when there is room.
func TestMaxConnections(t *testing.T) {
	g := startGateway(t, nil)
	g.connect(t, "east", "before").goEcho(nil)
	cfg := g.tls(t, "east")
	var open []*tls.Conn
	for range maxConnections - 1 {
		conn, err := g.connectOnly(t, cfg)
		if err != nil {
			t.Fatalf("connection %d: %v", len(open)+2, err)
		}
		open = append(open, conn)
	}
	// The bound is not one certificate's, but its subject's: another one of the same name counts.
	if _, err := g.connectOnly(t, g.tls(t, "east")); err == nil {
		t.Error("one too many was let in")
	}
	mustEcho(t, mustDial(t, g.dialer(t, "east", dialer.ForRequests)), "an agent that was there before is served")
	g.startStockAgent(t, "west", "west")

	for _, conn := range open[:len(open)/2] {
		_ = conn.Close()
	}
	eventually(t, "room for another", func() bool { _, err := g.connectOnly(t, cfg); return err == nil })
	g.startStockAgent(t, "east", "after")
}

// A connection that has no stream ends; that of an agent does not.
func TestIdleConnections(t *testing.T) {
	g := startGateway(t, func(c *Config) { c.maxIdle, c.watchInterval = 2*time.Second, 10*time.Millisecond }) // an agent must never take as long to make its stream
	g.startStockAgent(t, "east", "a")
	conn, err := g.connectOnly(t, g.tls(t, "east"))
	if err != nil {
		t.Fatal(err)
	}
	// Its end, after what it is told before.
	if _, err := io.Copy(io.Discard, conn); err != nil {
		t.Errorf("the connection ended with %v", err)
	}
	if n := g.streams("east", "a"); n != int(dialer.Purposes) {
		t.Errorf("the agent has %d streams, want %d", n, dialer.Purposes)
	}
	// What is closed is not counted, nor remembered.
	g.stop()
	g.connections.forget()
	if n := len(g.connections.open); n != 0 {
		t.Errorf("connections of %d subjects are remembered", n)
	}
}
