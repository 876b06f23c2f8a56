// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/oam-dev/cluster-gateway/pkg/dialer"
	"github.com/oam-dev/cluster-gateway/pkg/dialer/dialertest"
)

// connectFrom opens a connection from an address of the loopback network and sends nothing.
func (g *gateway) connectFrom(t *testing.T, address string) net.Conn {
	t.Helper()
	conn, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}).DialContext(t.Context(), "tcp", g.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// ended reports whether the server closes a connection within this time.
func ended(t *testing.T, conn net.Conn, within time.Duration) bool {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(within)); err != nil {
		t.Fatal(err)
	}
	_, err := io.Copy(io.Discard, conn)
	return !errors.Is(err, os.ErrDeadlineExceeded)
}

// Peers that connect and show no certificate use a bounded number of connections, and cannot keep
// agents at other addresses out.
func TestPeersWithoutCertificate(t *testing.T) {
	t.Parallel()
	const limit = 8
	g := startGateway(t, func(c *Config) { c.maxHandshakes = limit })
	var strangers []net.Conn
	for i := range limit {
		strangers = append(strangers, g.connectFrom(t, "127.0.0.2"))
		dialertest.Eventually(t, "the connection counts", func() bool { return g.handshaking() == i+1 })
	}
	if one := g.connectFrom(t, "127.0.0.2"); !ended(t, one, dialertest.HangTimeout) {
		t.Error("one connection too many of an address with all others stays open")
	}
	if g.handshaking() != limit {
		t.Errorf("%d connections count, want %d", g.handshaking(), limit)
	}
	// Another address gets a place: that of the oldest connection.
	neighbor := g.connectFrom(t, "127.0.0.3")
	if !ended(t, strangers[0], dialertest.HangTimeout) {
		t.Error("the oldest connection of the address with most of them is still open")
	}
	if ended(t, neighbor, 100*time.Millisecond) || ended(t, strangers[1], 100*time.Millisecond) {
		t.Error("a connection that had to go nowhere was closed")
	}
	g.connect(t, "east", "agent").goEcho(nil) // at 127.0.0.1
	mustEcho(t, mustDial(t, g.dialer(t, "east", dialer.ForRequests)), "an agent at another address is served")
	for _, conn := range append(strangers, neighbor) {
		_ = conn.Close()
	}
	dialertest.Eventually(t, "nothing to be left", func() bool { return g.handshaking() == 0 })
	g.handshakes.mu.Lock()
	defer g.handshakes.mu.Unlock()
	if len(g.handshakes.open) != 0 {
		t.Errorf("%d addresses are left", len(g.handshakes.open))
	}
}

// handshaking returns how many connections have not shown a certificate yet.
func (g *gateway) handshaking() int {
	g.handshakes.mu.Lock()
	defer g.handshakes.mu.Unlock()
	return g.handshakes.all
}

func TestHostOf(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{
		"192.0.2.7:1234":            "192.0.2.7",
		"[::ffff:192.0.2.7]:1234":   "192.0.2.7",
		"[2001:db8:1:2:3:4:5:6]:99": "2001:db8:1:2::/64",
		"[2001:db8:1:2::1]:1":       "2001:db8:1:2::/64",
	} {
		tcp, err := net.ResolveTCPAddr("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		if got := hostOf(addressed{to: tcp}); got != want {
			t.Errorf("%s: %q, want %q", address, got, want)
		}
	}
}

// addressed is a connection of which only the other end's address is known.
type addressed struct {
	net.Conn
	to net.Addr
}

func (a addressed) RemoteAddr() net.Addr { return a.to }
