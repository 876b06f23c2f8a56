// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestWatchFlushesEachEvent(t *testing.T) {
	// A channel for each server: a watch that has just been canceled may still take an event.
	h2, h1 := make(chan string), make(chan string)
	g := newGateway(t, nil)
	g.set(newAPIServer(t, events(h2)).secret("h2"))
	g.set(newAPIServer(t, events(h1), onlyHTTP1).secret("h1"))
	for name, lines := range map[string]chan string{"h2": h2, "h1": h1} {
		ctx, cancel := context.WithCancel(t.Context())
		// The header comes before the first event does.
		resp := g.watchOf(ctx, name)
		for i := range 20 {
			line := fmt.Sprintf("event %d\n", i)
			lines <- line
			buf := make([]byte, len(line))
			// The server writes no more before this one has arrived.
			within(t, maxWait, "an event", func() { _, _ = io.ReadFull(resp.Body, buf) })
			if string(buf) != line {
				t.Fatalf("%s: %q", name, buf)
			}
		}
		cancel()
	}
}

// zeros is a body of zeros that is not held in memory.
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
	const size = 128 << 20
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
	// Garbage must not count: how much there is depends on what other tests have left.
	defer debug.SetGCPercent(debug.SetGCPercent(10))
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
	// Client, gateway and cluster are in this process; each may hold a flow control window of some
	// MiB.
	if grown := int64(peak.Load()) - int64(before.HeapInuse); grown > size/2 {
		t.Errorf("the heap grew by %d MiB", grown>>20)
	}
}

// A client that stops reading delays no other request, not even on its own connection to the
// gateway.
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
		within(t, maxWait, "a GET beside stalled ones", func() { g.get("a", "/") })
	}
}

func TestClientGoneCancelsRequestToCluster(t *testing.T) {
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
		within(t, maxWait, "the end at the cluster", func() { <-left })
	}
	eventually(t, "499 in the metrics", func() bool {
		m := g.metrics()
		return strings.Contains(m, "requests_total{cluster=a,code=499,route=direct,verb=get} 1\n") &&
			strings.Contains(m, "requests_in_flight{cluster=a,route=direct} 0\n")
	})
	// A client that leaves in the middle of its body is not a failure of the cluster either.
	conn := g.raw("POST " + basePath + "a/proxy/post HTTP/1.1\r\nHost: gateway\r\nContent-Length: 100\r\n\r\nsome")
	<-entered
	_ = conn.Close()
	within(t, maxWait, "the end at the cluster", func() { <-left })
	eventually(t, "499 in the metrics", func() bool {
		return strings.Contains(g.metrics(), "requests_total{cluster=a,code=499,route=direct,verb=post} 1\n")
	})
}

// An answer that the cluster aborts is aborted for the client too, and counted with code 0.
func TestAbortedAnswer(t *testing.T) {
	s := newAPIServer(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		_, _ = io.WriteString(w, "some")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	g := newGateway(t, nil)
	g.set(s.secret("a"))
	// The header may have been sent by then or not. In neither case is the answer complete.
	if resp, err := g.client.Get(g.url("a", "/")); err == nil {
		if body, err := io.ReadAll(resp.Body); err == nil {
			t.Errorf("got a complete answer: %q", body)
		}
		_ = resp.Body.Close()
	}
	eventually(t, "code 0 in the metrics", func() bool {
		return strings.Contains(g.metrics(), "requests_total{cluster=a,code=0,route=direct,verb=get} 1\n")
	})
}

func TestDeadlines(t *testing.T) {
	const limit = 2 * time.Second // long enough that only the requests that are meant to time out do so
	s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/slow-body":
			_, _ = io.WriteString(w, "first")
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		case r.URL.Path == "/never", r.URL.Path == "/no-reader":
			<-r.Context().Done()
		case r.URL.Path == "/":
		default:
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
	for _, path := range []string{
		"/api/v1/pods?watch=true", "/api/v1/namespaces/n/pods/p/log", "/api/v1/namespaces/n/pods/p/log?follow=true",
		"/api/v1/namespaces/n/services/s/proxy/x", "/debug/pprof/profile",
	} {
		all.Go(func() {
			resp, body := g.get("a", path)
			diff(t, path, "200 still here", fmt.Sprint(resp.StatusCode, " ", body))
		})
	}
	all.Wait()
	// More than fits into the cluster's flow control window. Sent alone, because it uses up the
	// window of the connection.
	resp, body := g.do(http.MethodPost, "a", "/no-reader", &zeros{1 << 40})
	if resp.StatusCode != 504 || !strings.Contains(body, `cluster \"a\": sending the request to its API server took longer than 2s`) {
		t.Errorf("send: %s: %s", resp.Status, body)
	}
}

// EndStreams ends long-running requests, and lets others complete.
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
	within(t, maxWait, "the end of EndStreams", func() { <-ended })
	within(t, maxWait, "the end of the watch", func() { _, _ = io.ReadAll(watch.Body) })
	_, got := g.status("a", "/api/v1/pods?watch=1")
	diff(t, "a late watch", failure(503, "ServiceUnavailable", "a", CauseRequest, 1, `cluster "a": the gateway is shutting down; try again`), got)
	close(release)
	diff(t, "the ordinary request", "ok", <-ordinary)
	within(t, maxWait, "EndStreams with nothing to end", func() { g.handler.EndStreams(context.Background()) })
}
