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
	"github.com/oam-dev/cluster-gateway/pkg/dialer/dialertest"
)

// connectOnly opens an HTTP/2 connection without a stream. It returns when the server has accepted
// the connection, or with the error that ended it.
func (g *gateway) connectOnly(t *testing.T, cfg *tls.Config) (*tls.Conn, error) {
	t.Helper()
	cfg = cfg.Clone()
	cfg.NextProtos = []string{"h2"}
	conn, err := tls.Dial("tcp", g.address, cfg)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = conn.Close() }) // the test has closed some of them
	if err := conn.SetDeadline(time.Now().Add(dialertest.HangTimeout)); err != nil {
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

// A client with an agent's certificate cannot use up the gateway's file descriptors by connecting
// and doing nothing. Agents of other clusters can still connect, and those of its own cluster when
// there is room again.
func TestMaxConnections(t *testing.T) {
	t.Parallel()
	const limit = 8 * 2
	g := startGateway(t, func(c *Config) { c.MaxAgents = limit / 8 })
	g.connect(t, "east", "before").goEcho(nil)
	cfg := g.tls(t, "east")
	var open []*tls.Conn
	for range limit - 1 {
		conn, err := g.connectOnly(t, cfg)
		if err != nil {
			t.Fatalf("connection %d: %v", len(open)+2, err)
		}
		open = append(open, conn)
	}
	// The bound is for a subject, not for a certificate: another certificate of the same name
	// counts.
	if _, err := g.connectOnly(t, g.tls(t, "east")); err == nil {
		t.Error("the server accepted one connection too many")
	}
	const reason = `the agents of cluster "east" already have 16 connections to this replica of the gateway, which is the limit`
	if err := g.RecentRefusal("east"); err == nil || err.Error() != reason {
		t.Errorf("the recent refusal is %v, want %s", err, reason)
	}
	mustEcho(t, mustDial(t, g.dialer(t, "east", dialer.ForRequests)), "an agent that connected before is served")
	g.startStockAgent(t, "west", "west")

	for _, conn := range open[:len(open)/2] {
		_ = conn.Close()
	}
	dialertest.Eventually(t, "room for another", func() bool { _, err := g.connectOnly(t, cfg); return err == nil })
	g.startStockAgent(t, "east", "after")
}

// A connection without a stream is ended. The connection of an agent is not.
func TestIdleConnections(t *testing.T) {
	t.Parallel()
	g := startGateway(t, func(c *Config) {
		c.maxIdle = 2 * time.Second // an agent must never take that long to open its stream
		c.checkInterval = 10 * time.Millisecond
	})
	g.startStockAgent(t, "east", "a")
	conn, err := g.connectOnly(t, g.tls(t, "east"))
	if err != nil {
		t.Fatal(err)
	}
	if err := answerPings(conn); err != io.EOF {
		t.Errorf("the connection ended with %v, want io.EOF", err)
	}
	if used, parked := g.streams("east", "a"), g.parked("east", "a"); used != 1 || parked != 1 {
		t.Errorf("the agent has %d streams in use and %d parked ones, want one each", used, parked)
	}
	// Closed connections are neither counted nor kept.
	g.stop()
	g.connections.removeClosed()
	if n := len(g.connections.open); n != 0 {
		t.Errorf("the server keeps connections of %d subjects", n)
	}
}

// answerPings answers the server's pings until the connection ends. The server waits for an answer,
// or five seconds, before it closes an idle connection.
func answerPings(conn *tls.Conn) error {
	framer := http2.NewFramer(conn, conn)
	for {
		f, err := framer.ReadFrame()
		if err != nil {
			return err
		}
		if ping, ok := f.(*http2.PingFrame); ok && !ping.IsAck() {
			if err := framer.WritePing(true, ping.Data); err != nil {
				return err
			}
		}
	}
}
