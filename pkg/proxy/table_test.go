// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/dialer"
)

// counting counts the dialers that are made.
func counting(c *Config, n *atomic.Int64) {
	inner := c.Dialers
	c.Dialers = func(c *cluster.Cluster, purpose dialer.Purpose) (dialer.Dialer, error) {
		n.Add(1)
		return inner(c, purpose)
	}
}

// However many first requests arrive at once, there is one entry, one dial and one connection.
func TestFirstRequests(t *testing.T) {
	s := newAPIServer(t, ok)
	var made atomic.Int64
	g := newGateway(t, func(c *Config) { counting(c, &made) })
	g.set(s.secret("a"))
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			if resp, body := g.get("a", "/api"); resp.StatusCode != 200 {
				t.Errorf("%s: %s", resp.Status, body)
			}
		})
	}
	wg.Wait()
	if made.Load() != 2 || g.dials.Load() != 1 || s.accepted.Load() != 1 {
		t.Errorf("%d dialers, %d dials, %d connections; want 2, 1, 1", made.Load(), g.dials.Load(), s.accepted.Load())
	}
}

// All waiting requests share the failure of the dial, but not the end of the request that dials.
// TestOneDialsAtATime counts the dials.
func TestFirstRequestsToDeadCluster(t *testing.T) {
	dialing, fail := make(chan struct{}, 100), make(chan struct{})
	g := newGateway(t, func(c *Config) {
		c.Dialers = func(c *cluster.Cluster, _ dialer.Purpose) (dialer.Dialer, error) {
			return dialer.New(c.Name, func(context.Context, string, string) (net.Conn, error) {
				dialing <- struct{}{}
				<-fail
				return nil, fmt.Errorf("it is dead")
			}), nil
		}
	})
	g.set(secretWith("a", "endpoint", "https://127.0.0.1:1", "token", "x"))
	ctx, leave := context.WithCancel(t.Context())
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, g.url("a", "/"), nil)
		if resp, err := g.client.Do(req); err == nil {
			_ = resp.Body.Close()
			t.Error("the first request was answered")
		}
	}()
	<-dialing
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if resp, body := g.get("a", "/"); resp.StatusCode != 502 || !strings.Contains(body, "it is dead") {
				t.Errorf("%s: %s", resp.Status, body)
			}
		})
	}
	eventually(t, "all are in flight", func() bool { return strings.Contains(g.metrics(), "requests_in_flight{cluster=a,route=direct} 21\n") })
	leave()
	<-gone
	<-dialing // by the next in line
	close(fail)
	wg.Wait()
}

// A GET that finds a connection dials nothing and opens no connection.
func TestWarmRequestsDoNotDial(t *testing.T) {
	s, old := newAPIServer(t, ok), newAPIServer(t, ok, onlyHTTP1)
	g := newGateway(t, nil)
	g.set(s.secret("h2"))
	g.set(old.secret("h1"))
	g.get("h2", "/")
	g.get("h1", "/")
	before := g.dials.Load()
	for range 200 {
		g.get("h2", "/api")
	}
	if g.dials.Load() != before || s.accepted.Load() != 1 {
		t.Errorf("%d dials more; %d connections", g.dials.Load()-before, s.accepted.Load())
	}
	// An HTTP/1.1 connection can be reused a moment after its answer has ended. Sometimes, and more
	// often on a busy machine, that is too late for the next request. Without reuse, each request
	// would open a connection.
	for range 200 {
		g.get("h1", "/api")
	}
	if n := old.accepted.Load(); n > 100 {
		t.Errorf("%d connections for 200 requests over HTTP/1.1", n)
	}
}

// watchOf starts a watch and returns its answer.
func (g *gateway) watchOf(ctx context.Context, name string) *http.Response {
	g.t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, g.url(name, "/api/v1/pods?watch=1"), nil)
	if err != nil {
		g.t.Fatal(err)
	}
	resp, err := g.client.Do(req)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

// events serves watches. It writes what is sent to the channel at once.
func events(lines <-chan string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("watch") == "" {
			ok(w, r)
			return
		}
		_ = http.NewResponseController(w).Flush()
		for {
			select {
			case line, more := <-lines:
				if !more {
					return
				}
				_, _ = io.WriteString(w, line)
				_ = http.NewResponseController(w).Flush()
			case <-r.Context().Done():
				return
			}
		}
	}
}

// A new version of a cluster is used at once. The previous one serves its requests in flight, and
// is then closed.
func TestChangedSecret(t *testing.T) {
	lines := make(chan string)
	s := newAPIServer(t, events(lines))
	var made atomic.Int64
	g := newGateway(t, func(c *Config) { counting(c, &made) })
	secret := s.secret("a")
	g.set(secret)
	resp := g.watchOf(t.Context(), "a")

	// Health, labels and the like change nothing.
	secret.ResourceVersion = "2"
	secret.Annotations[v1alpha1.AnnotationHealthy] = "True"
	g.set(secret)
	g.get("a", "/")
	if made.Load() != 2 || s.accepted.Load() != 2 { // one for the watch
		t.Fatalf("%d dialers, %d connections after a change of health", made.Load(), s.accepted.Load())
	}
	secret.Data["token"] = []byte("another-token")
	g.set(secret)
	g.get("a", "/")
	if made.Load() != 4 || s.accepted.Load() != 3 || s.connections() != 3 {
		t.Fatalf("%d dialers, %d connections after a change of the credential", made.Load(), s.accepted.Load())
	}
	for _, line := range []string{"one\n", "two\n"} {
		lines <- line
		buf := make([]byte, len(line))
		if _, err := io.ReadFull(resp.Body, buf); err != nil || string(buf) != line {
			t.Fatalf("the watch over the previous transport: %q, %v", buf, err)
		}
	}
	if m := g.metrics(); !strings.Contains(m, "transports{} 2\n") {
		t.Error(m)
	}
	close(lines)
	if _, err := io.ReadAll(resp.Body); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the previous connections are closed", func() bool { return s.connections() == 1 })
	if m := g.metrics(); !strings.Contains(m, "transports{} 1\n") {
		t.Error(m)
	}
}

// After Reconnect, requests use new connections, those in flight continue, and watches end as API
// servers end them.
func TestReconnect(t *testing.T) {
	release, entered := make(chan struct{}), make(chan struct{}, 2)
	s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/slow":
			entered <- struct{}{}
			<-release
		case r.URL.Query().Has("watch"):
			_, _ = io.WriteString(w, "event\n")
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
			return
		}
		ok(w, r)
	})
	g := newGateway(t, nil)
	g.set(s.secret("a"))
	watch := g.watchOf(t.Context(), "a")
	slow := make(chan string)
	go func() { _, body := g.get("a", "/slow"); slow <- body }()
	<-entered
	if n := g.dials.Load(); n != 2 { // one for the watch
		t.Fatalf("%d dials", n)
	}
	g.handler.Reconnect("a")
	g.handler.Reconnect("b") // nothing has been asked of it
	for range 3 {
		g.get("a", "/")
	}
	if n := g.dials.Load(); n != 3 {
		t.Errorf("%d dials: want one more", n)
	}
	within(t, maxWait, "the end of the watch", func() {
		if body, err := io.ReadAll(watch.Body); err != nil || string(body) != "event\n" {
			t.Errorf("the watch ended with %q, %v", body, err)
		}
	})
	close(release)
	diff(t, "what was in flight", "ok", <-slow)
	eventually(t, "the end of the old connection", func() bool { return s.connections() == 1 })
	diff(t, "the connection that there is", int64(3), g.dials.Load())
}

// A deleted cluster is unknown at once. Its connections are closed, including those of previous
// versions.
func TestDeletedSecret(t *testing.T) {
	s := newAPIServer(t, events(nil))
	g := newGateway(t, nil)
	secret := s.secret("a")
	g.set(secret)
	g.set(s.secret("b"))
	g.get("b", "/")
	var watches []*http.Response
	for i := range 3 {
		secret.Data["token"] = []byte("token-" + itoa(i))
		g.set(secret)
		watches = append(watches, g.watchOf(t.Context(), "a"))
	}
	if s.connections() != 4 {
		t.Fatalf("%d connections", s.connections())
	}
	g.delete("a")
	resp, body := g.get("a", "/")
	wantCode(t, resp, body, 404)
	for _, w := range watches {
		within(t, maxWait, "the end of a watch", func() { _, _ = io.ReadAll(w.Body) })
	}
	eventually(t, "the connections are closed", func() bool { return s.connections() == 1 })
	eventually(t, "nothing in the metrics", func() bool { return !strings.Contains(g.metrics(), "cluster=a,") })
	resp, body = g.get("b", "/")
	wantCode(t, resp, body, 200)
	// Requests that ended after the deletion have not brought the metrics back.
	if m := g.metrics(); strings.Contains(m, "cluster=a,") {
		t.Error(m)
	}
}

// Requests in flight get the reason: the cluster was deleted.
func TestDeletedDuringRequest(t *testing.T) {
	entered := make(chan struct{})
	s := newAPIServer(t, func(_ http.ResponseWriter, r *http.Request) { close(entered); <-r.Context().Done() })
	g := newGateway(t, nil)
	g.set(s.secret("a"))
	done := make(chan struct{})
	go func() {
		defer close(done)
		if _, got := g.status("a", "/"); got.Code != 404 {
			t.Errorf("%+v", got)
		}
	}()
	<-entered
	g.delete("a")
	<-done
	if m := g.metrics(); strings.Contains(m, "cluster=a,") {
		t.Error(m)
	}
}

// No request fails because of a flood of changes.
func TestFloodOfChanges(t *testing.T) {
	s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Header.Get("Authorization")) })
	g := newGateway(t, nil)
	secret := s.secret("a")
	g.set(secret)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var served atomic.Int64
	for range 8 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				resp, body := g.get("a", "/api")
				if resp.StatusCode != 200 {
					t.Errorf("%s: %s", resp.Status, body)
					return
				}
				served.Add(1)
			}
		})
	}
	for i := range 200 {
		next := secret.DeepCopy()
		next.Data["token"] = []byte("token-" + itoa(i))
		g.set(next)
		// A request that starts after the change uses it.
		if _, body := g.get("a", "/api"); body != "Bearer token-"+itoa(i) {
			t.Fatalf("after change %d: %s", i, body)
		}
	}
	close(stop)
	wg.Wait()
	eventually(t, "all previous connections are closed", func() bool { return s.connections() == 1 })
	if m := g.metrics(); !strings.Contains(m, "transports{} 1\n") || !strings.Contains(m, "requests_in_flight{cluster=a,route=direct} 0\n") {
		t.Error(m)
	}
	t.Logf("%d requests were served during the changes", served.Load())
}

// An invalid version does not affect requests in flight, and the next valid one is used.
func TestInvalidVersionInBetween(t *testing.T) {
	lines := make(chan string)
	s := newAPIServer(t, events(lines))
	g := newGateway(t, nil)
	g.set(s.secret("a"))
	watch := g.watchOf(t.Context(), "a")
	g.set(s.secret("a", "ca.crt", "noise"))
	if resp, _ := g.get("a", "/"); resp.StatusCode != 503 {
		t.Error(resp.Status)
	}
	lines <- "still here"
	if _, err := io.ReadFull(watch.Body, make([]byte, 10)); err != nil {
		t.Error(err)
	}
	g.set(s.secret("a"))
	if resp, _ := g.get("a", "/"); resp.StatusCode != 200 {
		t.Error(resp.Status)
	}
	close(lines)
}

// A slot is not kept if its cluster is deleted between the two lookups.
func TestNoSlotForVanishedCluster(t *testing.T) {
	var calls atomic.Int64
	c := cluster.Parse(secretWith("a", "endpoint", "https://127.0.0.1:1", "token", "x"), cluster.ParseOptions{})
	h := NewHandler(Config{Metrics: NewMetrics(), Clusters: vanishing(func() (*cluster.Cluster, bool) { return c, calls.Add(1) == 1 })})
	defer h.Close()
	if _, err := h.table.acquire("a", "", classRequest); err != errNoCluster {
		t.Error(err)
	}
	if len(h.table.slots) != 0 {
		t.Error(h.table.slots)
	}
}

type vanishing func() (*cluster.Cluster, bool)

func (v vanishing) Get(string) (*cluster.Cluster, bool) { return v() }

// After Close, nothing is built, because nothing would close it.
func TestAfterClose(t *testing.T) {
	s := newAPIServer(t, ok)
	g := newGateway(t, nil)
	g.set(s.secret("a"))
	g.get("a", "/")
	g.handler.Close()
	_, got := g.status("a", "/")
	diff(t, "Status", failure(503, "ServiceUnavailable", "a", CauseRequest, 1, `cluster "a": the gateway is shutting down; try again`), got)
	eventually(t, "no connection", func() bool { return s.connections() == 0 })
	// To forget the metrics of a cluster is a search among those of all clusters. For all of them, as
	// when a gateway stops, that would take minutes with thousands of clusters.
	if m := g.metrics(); !strings.Contains(m, "cluster=a,") {
		t.Errorf("the metrics were deleted: %s", m)
	}
}

// A dialer that cannot be made is an error of its cluster only.
func TestBuildError(t *testing.T) {
	s := newAPIServer(t, ok)
	g := newGateway(t, func(c *Config) {
		inner := c.Dialers
		c.Dialers = func(c *cluster.Cluster, purpose dialer.Purpose) (dialer.Dialer, error) {
			if c.Name == "a" && purpose == dialer.ForUpgrades {
				return nil, fmt.Errorf("no dialer today")
			}
			return inner(c, purpose)
		}
	})
	g.set(s.secret("a"))
	g.set(s.secret("b"))
	_, got := g.status("a", "/")
	diff(t, "Status", failure(503, "ServiceUnavailable", "a", CauseInvalidSecret, 1, `cluster "a" cannot be used: no dialer today`), got)
	resp, body := g.get("b", "/")
	wantCode(t, resp, body, 200)
}

// Many requests, changes and deletions at the same time, for the race detector.
func TestTableRaces(t *testing.T) {
	s := newAPIServer(t, ok)
	g := newGateway(t, nil)
	end := time.Now().Add(500 * time.Millisecond)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for time.Now().Before(end) {
				if resp, body := g.get("a", "/"); resp.StatusCode != 200 && resp.StatusCode != 404 &&
					(resp.StatusCode != 503 || !strings.Contains(body, "registered again")) {
					t.Errorf("%s: %s", resp.Status, body)
				}
			}
		})
	}
	for i := 0; time.Now().Before(end); i++ {
		g.set(s.secret("a", "token", "t"+itoa(i)))
		time.Sleep(time.Millisecond) // some requests get through
		g.delete("a")
	}
	wg.Wait()
	g.delete("a")
	eventually(t, "no connection", func() bool { return s.connections() == 0 })
	eventually(t, "no metrics, no transport", func() bool {
		m := g.metrics()
		return !strings.Contains(m, "cluster=a") && strings.Contains(m, "transports{} 0\n")
	})
}

// A request uses a new version in the store even before the handler is notified of it.
func TestChangeBeforeNotice(t *testing.T) {
	a, b := newAPIServer(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "a") }), newAPIServer(t, ok)
	g := newGateway(t, nil)
	g.set(a.secret("x"))
	_, body := g.get("x", "/")
	diff(t, "before", "a", body)
	c := cluster.Parse(b.secret("x"), g.parse)
	g.clusters.mu.Lock()
	g.clusters.byName["x"] = c
	g.clusters.mu.Unlock()
	_, body = g.get("x", "/")
	diff(t, "after", "ok", body)
	eventually(t, "the previous connection is closed", func() bool { return a.connections() == 0 })
}
