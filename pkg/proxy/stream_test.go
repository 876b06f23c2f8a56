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
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestWatchFlushesEachEvent(t *testing.T) {
	lines := make(chan string)
	s, old := newAPIServer(t, events(lines)), newAPIServer(t, events(lines), onlyHTTP1)
	g := newGateway(t, nil)
	g.set(s.secret("h2"))
	g.set(old.secret("h1"))
	for _, name := range []string{"h2", "h1"} {
		ctx, cancel := context.WithCancel(t.Context())
		// The header comes before the first event does.
		resp := g.watchOf(ctx, name)
		for i := range 20 {
			line := fmt.Sprintf("event %d\n", i)
			lines <- line
			buf := make([]byte, len(line))
			// The server writes no more before this one has arrived.
			within(t, patience, "an event", func() { _, _ = io.ReadFull(resp.Body, buf) })
			if string(buf) != line {
				t.Fatalf("%s: %q", name, buf)
			}
		}
		cancel()
	}
}

// zeros is a body that is never held in memory.
type zeros struct{ left int64 }

func (z *zeros) Read(p []byte) (int, error) {
	if z.left == 0 {
		return 0, io.EOF
	}
	n := min(int64(len(p)), z.left)
	z.left -= n
	clear(p[:n])
	return int(n), nil
}

func TestLargeBodies(t *testing.T) {
	const size = 64 << 20
	s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil || n != size {
			t.Errorf("%d bytes arrived: %v", n, err)
		}
		_, _ = io.Copy(w, &zeros{size})
	})
	g := newGateway(t, nil)
	g.set(s.secret("a"))
	var peak atomic.Uint64
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				peak.Store(max(peak.Load(), m.HeapInuse))
			}
		}
	}()
	var before runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	req, err := http.NewRequest(http.MethodPost, g.url("a", "/x"), &zeros{size})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := g.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	close(stop)
	<-stopped
	if err != nil || n != size {
		t.Errorf("%d bytes came back: %v", n, err)
	}
	// Client, gateway and cluster are in this process; each may hold a flow control window of some MiB.
	if grown := int64(peak.Load()) - int64(before.HeapInuse); grown > size/2 {
		t.Errorf("the heap grew by %d MiB", grown>>20)
	}
}

// A client that stops reading holds nobody up, not even on its own connection to the gateway.
func TestStalledClient(t *testing.T) {
	s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/endless" {
			_, _ = io.Copy(w, &zeros{1 << 40})
		}
	})
	g := newGateway(t, nil)
	g.set(s.secret("a"))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range 8 {
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, g.url("a", "/endless"), nil)
		resp, err := g.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
	}
	for range 50 {
		within(t, patience, "a GET beside stalled ones", func() { g.get("a", "/") })
	}
}

func TestClientGoneCancelsAtTheCluster(t *testing.T) {
	entered, left := make(chan string, 1), make(chan string, 1)
	s := newAPIServer(t, func(_ http.ResponseWriter, r *http.Request) {
		entered <- r.URL.Path
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
		left <- r.URL.Path
	})
	g := newGateway(t, nil)
	g.set(s.secret("a"))
	for _, path := range []string{"/get", "/api/v1/pods?watch=1"} {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			req, _ := http.NewRequestWithContext(ctx, http.MethodGet, g.url("a", path), nil)
			if resp, err := g.client.Do(req); err == nil {
				_ = resp.Body.Close()
			}
		}()
		<-entered
		cancel()
		<-done
		within(t, patience, "the end at the cluster", func() { <-left })
	}
	eventually(t, "499 in the metrics", func() bool {
		m := g.metrics()
		return strings.Contains(m, "requests_total{cluster=a,code=499,route=direct,verb=get} 1\n") &&
			strings.Contains(m, "requests_in_flight{cluster=a,route=direct} 0\n")
	})
	// One that goes away in the middle of its body: not the cluster's fault either.
	conn := g.raw("POST " + basePath + "a/proxy/post HTTP/1.1\r\nHost: gateway\r\nContent-Length: 100\r\n\r\nsome")
	<-entered
	_ = conn.Close()
	within(t, patience, "the end at the cluster", func() { <-left })
	eventually(t, "499 in the metrics", func() bool {
		return strings.Contains(g.metrics(), "requests_total{cluster=a,code=499,route=direct,verb=post} 1\n")
	})
}

// An answer that breaks off is broken off for the client too, and counted as that.
func TestAnswerBreaksOff(t *testing.T) {
	s := newAPIServer(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		_, _ = io.WriteString(w, "some")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	g := newGateway(t, nil)
	g.set(s.secret("a"))
	// Whether the header has gone out by then is a matter of buffers; that there is no whole answer is not.
	if resp, err := g.client.Get(g.url("a", "/")); err == nil {
		if body, err := io.ReadAll(resp.Body); err == nil {
			t.Errorf("a whole answer: %q", body)
		}
		_ = resp.Body.Close()
	}
	eventually(t, "code 0 in the metrics", func() bool {
		return strings.Contains(g.metrics(), "requests_total{cluster=a,code=0,route=direct,verb=get} 1\n")
	})
}

func TestDeadlines(t *testing.T) {
	const limit = 2 * time.Second // what is not meant to take as long must never do
	s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/slow-body":
			_, _ = io.WriteString(w, "first")
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		case r.URL.Path == "/never", r.URL.Path == "/no-reader":
			<-r.Context().Done()
		case strings.HasSuffix(r.URL.Path, "/log") || r.URL.Query().Has("watch"):
			_ = http.NewResponseController(w).Flush()
			select {
			case <-time.After(2 * limit):
				_, _ = io.WriteString(w, "still here")
			case <-r.Context().Done():
			}
		}
	})
	mute, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	g := newGateway(t, func(c *Config) { c.RequestTimeout = limit })
	g.set(s.secret("a"))
	g.set(s.secret("mute", "endpoint", "https://"+mute.Addr().String()))
	g.get("a", "/")

	var all sync.WaitGroup // they wait at the same time
	all.Go(func() {
		_, got := g.status("mute", "/")
		diff(t, "connect", failure(504, "Timeout", "mute", CauseEndpoint, 0, `cluster "mute": connecting to its API server took longer than 2s`), got)
	})
	all.Go(func() {
		_, got := g.status("a", "/never")
		diff(t, "answer", failure(504, "Timeout", "a", CauseResponse, 0, `cluster "a": its API server's answer took longer than 2s`), got)
	})
	all.Go(func() {
		slow, err := g.client.Get(g.url("a", "/slow-body"))
		if err != nil {
			t.Error(err)
			return
		}
		if body, err := io.ReadAll(slow.Body); err == nil || string(body) != "first" {
			t.Errorf("a body that takes too long: %q, %v", body, err)
		}
		_ = slow.Body.Close()
	})
	for _, path := range []string{"/api/v1/pods?watch=true", "/api/v1/namespaces/n/pods/p/log?follow=true"} {
		all.Go(func() {
			resp, body := g.get("a", path)
			diff(t, path, "200 still here", fmt.Sprint(resp.StatusCode, " ", body))
		})
	}
	all.Go(func() {
		if resp, err := g.client.Get(g.url("a", "/api/v1/namespaces/n/pods/p/log")); err == nil {
			if _, err := io.ReadAll(resp.Body); err == nil {
				t.Error("a log that is not followed has no deadline")
			}
			_ = resp.Body.Close()
		}
	})
	all.Wait()
	// More than the cluster's flow control takes; alone, for it fills what the others would use.
	resp, body := g.do(http.MethodPost, "a", "/no-reader", &zeros{1 << 40})
	if resp.StatusCode != 504 || !strings.Contains(body, `cluster \"a\": sending the request to its API server took longer than 2s`) {
		t.Errorf("send: %s: %s", resp.Status, body)
	}
}

// Shutdown ends what would not end by itself, and lets the rest end.
func TestEndStreams(t *testing.T) {
	release := make(chan struct{})
	entered := make(chan struct{}, 2)
	s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush()
		entered <- struct{}{}
		select {
		case <-release:
			ok(w, r)
		case <-r.Context().Done():
		}
	})
	g := newGateway(t, nil)
	g.set(s.secret("a"))
	ordinary := make(chan string)
	go func() { _, body := g.get("a", "/"); ordinary <- body }()
	<-entered
	watch := g.watchOf(t.Context(), "a")
	<-entered
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); g.handler.EndStreams(ctx) }()
	select {
	case <-ended:
		t.Fatal("the grace period was not granted")
	case <-time.After(150 * time.Millisecond):
	}
	cancel()
	within(t, patience, "the end of EndStreams", func() { <-ended })
	within(t, patience, "the end of the watch", func() { _, _ = io.ReadAll(watch.Body) })
	_, got := g.status("a", "/api/v1/pods?watch=1")
	diff(t, "a late watch", failure(503, "ServiceUnavailable", "a", CauseRequest, 1, `cluster "a": the gateway is shutting down; try again`), got)
	close(release)
	diff(t, "the ordinary request", "ok", <-ordinary)
	within(t, patience, "EndStreams with nothing to end", func() { g.handler.EndStreams(context.Background()) })
}

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

// upgrade returns the connection after the answer to an upgrade, and the answer.
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
	// Switched to something else than was asked for: an error, and no connection is left behind.
	g.set(s.secret("b"))
	_, _, resp = g.upgrade("b", "/other")
	if resp.StatusCode != 502 {
		t.Error(resp.Status)
	}
	eventually(t, "the connection is closed", func() bool {
		return strings.Contains(g.metrics(), "connections{cluster=b,route=direct} 0\n")
	})
}

// An upgraded connection ends with its cluster, its client, and the gateway.
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
			within(t, patience, "the end at the client", func() {
				if _, err := br.ReadByte(); err == nil {
					t.Error("more came")
				}
			})
			// Half of a connection may close before the other; the client's is its own to close.
			_ = conn.Close()
			eventually(t, "nothing in flight", func() bool { return g.handler.streams.Load() == 0 })
		})
	}
}
