// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestTooManyRequests(t *testing.T) {
	release, entered := make(chan struct{}), make(chan struct{}, 10)
	s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		if r.URL.Path == "/wait" {
			<-release
		}
	})
	g := newGateway(t, func(c *Config) { c.MaxInFlight = 2 })
	g.set(s.secret("busy"))
	g.set(s.secret("idle"))
	done := make(chan struct{}, 2)
	for range 2 {
		go func() { defer func() { done <- struct{}{} }(); g.get("busy", "/wait") }()
		<-entered
	}
	resp, got := g.status("busy", "/")
	diff(t, "Status", failure(429, metav1.StatusReasonTooManyRequests, "busy", CauseRequest, 1,
		`cluster "busy" already has 2 requests in flight through this gateway, which is the limit; try again later`), got)
	diff(t, "Retry-After", "1", resp.Header.Get("Retry-After"))
	// The limit does not affect watches or other clusters.
	for _, at := range [][2]string{{"idle", "/"}, {"busy", "/api/v1/pods?watch=1"}} {
		resp, body := g.get(at[0], at[1])
		wantCode(t, resp, body, 200)
		<-entered
	}
	close(release)
	<-done
	<-done
	eventually(t, "the limit is not reached any more", func() bool {
		resp, _ := g.get("busy", "/")
		return resp.StatusCode == 200
	})
	if m := g.metrics(); !strings.Contains(m, "requests_total{cluster=busy,code=429,route=direct,verb=get} 1\n") {
		t.Error(m)
	}
}

func TestTooManyStreams(t *testing.T) {
	entered := make(chan struct{}, 10)
	s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		entered <- struct{}{}
		if r.URL.Query().Has("hold") {
			<-r.Context().Done()
		}
	})
	g := newGateway(t, func(c *Config) { c.MaxStreams = 2 })
	g.set(s.secret("busy"))
	g.set(s.secret("idle"))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for _, path := range []string{"/api/v1/pods?watch=1&hold", "/api/v1/namespaces/a/pods/b/log?follow=true&hold"} {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, g.url("busy", path), nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := g.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		<-entered
	}
	const message = `cluster "busy" already has 2 long-running requests (such as watches, logs, exec, attach and port-forward) through this gateway, which is the limit; try again later`
	resp, got := g.status("busy", "/api/v1/pods?watch=1")
	diff(t, "Status of a watch", failure(429, metav1.StatusReasonTooManyRequests, "busy", CauseRequest, 1, message), got)
	diff(t, "Retry-After", "1", resp.Header.Get("Retry-After"))
	upgrade, err := http.ReadResponse(bufio.NewReader(g.raw("GET "+basePath+"busy/proxy/api/v1/namespaces/a/pods/b/exec HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")), nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(io.LimitReader(upgrade.Body, upgrade.ContentLength))
	if err != nil {
		t.Fatal(err)
	}
	wantCode(t, upgrade, string(body), 429)
	// The limit does not affect ordinary requests or other clusters.
	for _, at := range [][2]string{{"busy", "/"}, {"idle", "/api/v1/pods?watch=1"}} {
		resp, body := g.get(at[0], at[1])
		wantCode(t, resp, body, 200)
		<-entered
	}
	cancel()
	eventually(t, "the limit is not reached any more", func() bool {
		resp, _ := g.get("busy", "/api/v1/pods?watch=1")
		return resp.StatusCode == 200
	})
}

// startUpgrade sends an upgrade request and returns the connection on which its answer comes.
func (g *gateway) startUpgrade(name, path string) *tls.Conn {
	g.t.Helper()
	return g.raw("GET " + basePath + name + "/proxy" + path + " HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: test\r\n\r\n")
}

// readStatus returns the code of the answer on a connection, and its body if it has a length.
func readStatus(t testing.TB, conn *tls.Conn) (int, string) {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(maxWait))
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.ContentLength <= 0 {
		return resp.StatusCode, ""
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// The header Upgrade does not take a request out of the limits: until the cluster answers, it has
// the deadline and the place of any other.
func TestUpgradeRequestIsLimited(t *testing.T) {
	entered := make(chan struct{}, 10)
	s := newAPIServer(t, func(_ http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		<-r.Context().Done()
	})
	g := newGateway(t, func(c *Config) { c.MaxInFlight, c.RequestTimeout = 1, 2*time.Second })
	g.set(s.secret("a"))
	first := g.startUpgrade("a", "/api/v1/secrets")
	<-entered
	for _, path := range []string{"/api/v1/secrets", "/api/v1/namespaces/n/pods/p/exec"} {
		code, body := readStatus(t, g.startUpgrade("a", path))
		if code != http.StatusTooManyRequests || !strings.Contains(body, "already has 1 requests in flight") {
			t.Errorf("a second upgrade, %s: %d: %s", path, code, body)
		}
	}
	if resp, body := g.get("a", "/"); resp.StatusCode != http.StatusTooManyRequests {
		t.Errorf("an ordinary request beside it: %s: %s", resp.Status, body)
	}
	if code, body := readStatus(t, first); code != http.StatusGatewayTimeout {
		t.Errorf("an upgrade that is not answered: %d: %s", code, body)
	}
}

// An accepted upgrade is a stream: it has no deadline, and leaves its place to other requests.
func TestAcceptedUpgradeIsStream(t *testing.T) {
	const limit = time.Second
	s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/refused":
			w.WriteHeader(http.StatusForbidden)
		case strings.HasSuffix(r.URL.Path, "/proxy"): // refused, but long-running all the same
			_ = http.NewResponseController(w).Flush()
			time.Sleep(2 * limit)
			_, _ = io.WriteString(w, "still here")
		default:
			echoUpgrade(w, r)
		}
	})
	g := newGateway(t, func(c *Config) { c.MaxInFlight, c.MaxStreams, c.RequestTimeout = 1, 2, limit })
	g.set(s.secret("a"))
	conn, br, resp := g.upgrade("a", "/accepted")
	wantCode(t, resp, "", http.StatusSwitchingProtocols)
	_, _, other := g.upgrade("a", "/api/v1/namespaces/n/services/s/proxy")
	wantCode(t, other, "", http.StatusOK)
	if n := g.handler.streams.Load(); n != 2 {
		t.Errorf("%d streams, want 2", n)
	}
	if code, body := readStatus(t, g.startUpgrade("a", "/accepted")); code != http.StatusTooManyRequests || !strings.Contains(body, "already has 2 long-running requests") {
		t.Errorf("one stream too many: %d: %s", code, body)
	}
	if body, err := io.ReadAll(other.Body); err != nil || string(body) != "still here" {
		t.Errorf("a long-running answer to a refused upgrade: %q, %v", body, err)
	}
	if _, err := io.WriteString(conn, "x"); err != nil {
		t.Fatal(err)
	}
	if b, err := br.ReadByte(); err != nil || b != 'x' {
		t.Errorf("after the deadline of a request: %q, %v", b, err)
	}
	_, _, refused := g.upgrade("a", "/refused")
	wantCode(t, refused, "", http.StatusForbidden)
	eventually(t, "the refused upgrade leaves its place", func() bool {
		resp, _ := g.get("a", "/refused")
		return resp.StatusCode == http.StatusForbidden
	})
}

// TestCallersShareLimits: one caller cannot have all places of a cluster, several share them, and
// somebody new always finds one. The gateway's own requests do not count.
func TestCallersShareLimits(t *testing.T) {
	t.Parallel()
	s := newAPIServer(t, ok)
	for name, class := range map[string]class{"requests": classRequest, "streams": classStream, "upgrades": classUpgrade} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newGateway(t, func(c *Config) { c.MaxInFlight, c.MaxStreams = 100, 100 })
			g.set(s.secret("a"))
			table := g.handler.table
			var leases []lease
			// take acquires places for a caller until it gets no more.
			take := func(caller string) (got int, err error) {
				for {
					l, err := table.acquire("a", caller, class)
					if err != nil {
						return got, err
					}
					leases, got = append(leases, l), got+1
				}
			}
			greedy, err := take("greedy")
			var limit *limitError
			if greedy != 67 || !errors.As(err, &limit) || !strings.Contains(err.Error(), "you already have 67 ") || tooManyRequests(limit).ErrStatus.Code != http.StatusTooManyRequests {
				t.Errorf("a caller alone got %d places: %v", greedy, err)
			}
			for n := range 4 {
				if got, _ := take("user-" + itoa(n)); got == 0 {
					t.Errorf("caller %d got no place", n)
				}
			}
			if _, err := table.acquire("a", "", classInternal); err != nil {
				t.Errorf("a request of the gateway: %v", err)
			}
			for i := range leases {
				leases[i].release()
			}
			if n := len(table.slot("a").callers); n != 0 {
				t.Errorf("%d callers are left", n)
			}
			if got, _ := take("greedy"); got != 67 {
				t.Errorf("a caller got %d places after all were released", got)
			}
		})
	}
}

// TestAcceptedUpgradeKeepsItsCaller: an upgrade that becomes a stream is counted for its caller
// until it ends.
func TestAcceptedUpgradeKeepsItsCaller(t *testing.T) {
	t.Parallel()
	g := newGateway(t, func(c *Config) { c.MaxInFlight, c.MaxStreams = 10, 10 })
	g.set(newAPIServer(t, ok).secret("a"))
	l, err := g.handler.table.acquire("a", "jane", classUpgrade)
	if err != nil {
		t.Fatal(err)
	}
	l.becomeStream()
	diff(t, "places", map[string]counts{"jane": {classStream: 1}}, l.slot.callers)
	l.release()
	diff(t, "places", map[string]counts{}, l.slot.callers)
}

func TestLimitUsage(t *testing.T) {
	s := newAPIServer(t, ok)
	g := newGateway(t, func(c *Config) { c.MaxInFlight, c.MaxStreams, c.MaxDials = 10, 20, 4 })
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(g.handler)
	check := func(want map[string]float64) {
		t.Helper()
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]float64{}
		for _, family := range families {
			for _, m := range family.Metric {
				got[m.Label[0].GetValue()+" "+m.Label[1].GetValue()] = m.Gauge.GetValue()
			}
		}
		diff(t, "usage", want, got)
	}
	check(map[string]float64{})
	g.set(s.secret("a"))
	var leases []lease
	for _, as := range []class{classRequest, classUpgrade, classStream, classInternal} {
		l, err := g.handler.table.acquire("a", "somebody", as)
		if err != nil {
			t.Fatal(err)
		}
		leases = append(leases, l)
	}
	leave, err := leases[0].slot.gate.enter(t.Context(), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	another, err := leases[0].slot.gate.enter(t.Context(), time.Second) // the first one is the cluster's own
	if err != nil {
		t.Fatal(err)
	}
	check(map[string]float64{" dials": 1.0 / 4, "a dials": 2.0 / 64, "a requests": 2.0 / 10, "a streams": 2.0 / 20})
	leave()
	another()
	for _, l := range leases {
		l.release()
	}
	check(map[string]float64{})
}
