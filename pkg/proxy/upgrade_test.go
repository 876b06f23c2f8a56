// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/dialer"
)

// echoUpgrade switches to a protocol that echoes; "/refuse" does not.
func echoUpgrade(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.ProtoMajor != 1 || r.Header.Get("Upgrade") == "":
		http.Error(w, "no upgrade over "+r.Proto, http.StatusBadRequest)
		return
	case r.URL.Path == "/refuse":
		http.Error(w, "you may not", http.StatusForbidden)
		return
	}
	conn, brw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer conn.Close()
	protocol := r.Header.Get("Upgrade")
	if r.URL.Path == "/other" {
		protocol = "something-else"
	}
	_, _ = fmt.Fprintf(brw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\nX-Of: cluster\r\nSet-Cookie: a=b\r\n\r\n", protocol)
	_ = brw.Flush()
	_, _ = io.Copy(conn, brw)
	if r.URL.Path == "/tail" {
		_, _ = io.WriteString(conn, " and the rest") // after the other side has closed its half
	}
	_ = conn.(*tls.Conn).CloseWrite()
}

// upgrade sends an upgrade, and returns its connection and the answer.
func (g *gateway) upgrade(name, path string) (*tls.Conn, *bufio.Reader, *http.Response) {
	g.t.Helper()
	conn := g.raw("POST " + basePath + name + "/proxy" + path + " HTTP/1.1\r\nHost: gateway\r\nConnection: Upgrade\r\nUpgrade: test\r\nContent-Length: 0\r\n\r\n")
	br := bufio.NewReader(conn)
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		g.t.Fatal(err)
	}
	return conn, br, resp
}

func TestUpgrade(t *testing.T) {
	s := newAPIServer(t, echoUpgrade) // it offers HTTP/2: that the upgrade came over HTTP/1.1 is the gateway's doing
	g := newGateway(t, nil)
	g.set(s.secret("a"))
	conn, br, resp := g.upgrade("a", "/tail")
	if resp.StatusCode != 101 || resp.Header.Get("X-Of") != "cluster" || resp.Header.Get("Upgrade") != "test" || resp.Header.Get("Set-Cookie") != "" {
		t.Fatalf("%s %v", resp.Status, resp.Header)
	}
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	go func() {
		_, _ = conn.Write(sent)
		_ = conn.CloseWrite()
	}()
	got, err := io.ReadAll(br)
	if err != nil || !bytes.Equal(got, append(bytes.Clone(sent), " and the rest"...)) {
		t.Errorf("%d bytes came back: %v", len(got), err)
	}
	eventually(t, "the end of the exchange", func() bool {
		m := g.metrics()
		return strings.Contains(m, "requests_total{cluster=a,code=101,route=direct,verb=connect} 1\n") && strings.Contains(m, "connections{cluster=a,route=direct} 0\n")
	})
}

func TestUpgradeRefused(t *testing.T) {
	s := newAPIServer(t, echoUpgrade)
	g := newGateway(t, nil)
	g.set(s.secret("a"))
	_, _, resp := g.upgrade("a", "/refuse")
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 12))
	if resp.StatusCode != 403 || string(body) != "you may not\n" {
		t.Errorf("%s: %q", resp.Status, body)
	}
	// A switch to another protocol than the requested one is an error, and leaves no connection
	// behind.
	g.set(s.secret("b"))
	_, _, resp = g.upgrade("b", "/other")
	if resp.StatusCode != 502 {
		t.Error(resp.Status)
	}
	eventually(t, "the connection is closed", func() bool {
		return strings.Contains(g.metrics(), "connections{cluster=b,route=direct} 0\n")
	})
}

// An upgraded connection ends when its cluster, its client or the gateway does.
func TestUpgradeEnds(t *testing.T) {
	for name, end := range map[string]func(g *gateway, drop func(), client net.Conn){
		"the cluster goes away":  func(_ *gateway, drop func(), _ net.Conn) { drop() },
		"the cluster is deleted": func(g *gateway, _ func(), _ net.Conn) { g.delete("a") },
		"the client goes away":   func(_ *gateway, _ func(), c net.Conn) { _ = c.Close() },
		"the gateway stops": func(g *gateway, _ func(), _ net.Conn) {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			g.handler.EndStreams(ctx)
		},
	} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			var hijacked []net.Conn
			s := newAPIServer(t, func(w http.ResponseWriter, _ *http.Request) {
				conn, _, err := http.NewResponseController(w).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				hijacked = append(hijacked, conn)
				mu.Unlock()
				_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: test\r\n\r\n")
				_, _ = io.Copy(conn, conn)
				_ = conn.Close()
			})
			drop := func() {
				mu.Lock()
				defer mu.Unlock()
				for _, c := range hijacked {
					_ = c.Close()
				}
			}
			g := newGateway(t, nil)
			g.set(s.secret("a"))
			conn, br, _ := g.upgrade("a", "/")
			if _, err := io.WriteString(conn, "x"); err != nil {
				t.Fatal(err)
			}
			if b, err := br.ReadByte(); b != 'x' || err != nil {
				t.Fatal(b, err)
			}
			end(g, drop, conn)
			within(t, maxWait, "the end at the client", func() {
				if _, err := br.ReadByte(); err == nil {
					t.Error("more came")
				}
			})
			// One direction may be closed before the other. The client closes its own.
			_ = conn.Close()
			eventually(t, "nothing in flight", func() bool { return g.handler.streams.Load() == 0 })
		})
	}
}

// closedForWriting is the connection to a cluster that has closed it: what was received before can
// be read, and nothing can be written.
type closedForWriting struct{ io.Reader }

func (closedForWriting) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }
func (closedForWriting) Close() error              { return nil }

// TestUpgradeEndsWhenAllIsRead shows that what a client sends after the cluster has closed the
// connection does not end the exchange: a slow client still gets the rest.
func TestUpgradeEndsWhenAllIsRead(t *testing.T) {
	rest := bytes.Repeat([]byte("x"), 1<<20)
	ended := 0
	conn := &upgradedConn{ReadWriteCloser: closedForWriting{bytes.NewReader(rest)}, ended: func() { ended++ }}
	if n, err := conn.Write([]byte("ping")); n != 4 || err != nil || ended != 0 {
		t.Errorf("a write: %d, %v, ended %d times", n, err, ended)
	}
	got, err := io.ReadAll(conn)
	if err != nil || len(got) != len(rest) || ended != 1 {
		t.Errorf("got %d bytes, %v, ended %d times", len(got), err, ended)
	}
}

// halfBroken is a connection that cannot be written to once broken is set, and can still be read.
type halfBroken struct {
	net.Conn
	broken *atomic.Bool
}

func (c halfBroken) Write(p []byte) (int, error) {
	if c.broken.Load() {
		return 0, io.ErrClosedPipe
	}
	return c.Conn.Write(p)
}

// TestSlowClientGetsTheRest lets a cluster close a connection, as through a tunnel: the gateway
// cannot write to it any more, and has much left to deliver. The client is slow, and goes on
// sending.
func TestSlowClientGetsTheRest(t *testing.T) {
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<18) // 4 MiB
	var broken atomic.Bool
	s := newAPIServer(t, func(w http.ResponseWriter, _ *http.Request) {
		conn, brw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		_, _ = io.WriteString(brw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: test\r\n\r\n")
		_ = brw.Flush()
		broken.Store(true)
		_, _ = conn.Write(sent)
		_ = conn.Close()
	})
	g := newGateway(t, func(cfg *Config) {
		cfg.Dialers = func(c *cluster.Cluster, _ dialer.Purpose) (dialer.Dialer, error) {
			var d net.Dialer
			return dialer.New(c.Name, func(ctx context.Context, network, address string) (net.Conn, error) {
				conn, err := d.DialContext(ctx, network, address)
				return halfBroken{conn, &broken}, err
			}), nil
		}
	})
	g.set(s.secret("a"))
	conn, br, resp := g.upgrade("a", "/")
	if resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(resp.Status)
	}
	done := make(chan struct{})
	go func() { // pings, until the client has read all
		for {
			select {
			case <-done:
				return
			case <-time.After(time.Millisecond):
				_, _ = conn.Write([]byte("ping"))
			}
		}
	}()
	got := make([]byte, 0, len(sent))
	buffer := make([]byte, 64<<10)
	for {
		n, err := br.Read(buffer)
		got = append(got, buffer[:n]...)
		if err != nil {
			if err != io.EOF {
				t.Errorf("after %d bytes: %v", len(got), err)
			}
			break
		}
		time.Sleep(time.Millisecond) // the client is slow
	}
	close(done)
	if !bytes.Equal(got, sent) {
		t.Errorf("got %d of %d bytes", len(got), len(sent))
	}
	_ = conn.Close()
	eventually(t, "the end of the exchange", func() bool { return strings.Contains(g.metrics(), "connections{cluster=a,route=direct} 0\n") })
}
