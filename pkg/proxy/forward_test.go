// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/dialer"
	"github.com/oam-dev/cluster-gateway/pkg/peers"
	"github.com/oam-dev/cluster-gateway/pkg/pki"
)

// replica is a gateway with others beside it. It has an agent of the cluster "edge" while hasAgent
// is set. The agent dials as the gateway would.
type replica struct {
	*gateway
	peers    *peers.Peers
	hasAgent atomic.Bool
	// stop ends the connections with the other replicas.
	stop context.CancelFunc
}

// newReplicas starts gateways that know each other through a hub.
func newReplicas(t testing.TB, configure func(*Config), ids ...string) []*replica {
	t.Helper()
	hub := fake.NewClientset()
	keeper := pki.NewKeeper(pki.KeeperConfig{
		Client: hub, Namespace: "gateway", CASecret: pki.PeerCASecret, ServingSecret: pki.PeerSecret,
		Hosts: []string{peers.ServerName}, Organization: v1alpha1.PeerOrganization,
	})
	if err := keeper.LoadOrCreate(t.Context()); err != nil {
		t.Fatal(err)
	}
	var all []*replica
	for _, id := range ids {
		r := &replica{}
		lis, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		dial := func(ctx context.Context, name, address string) (net.Conn, error) {
			if !r.hasAgent.Load() {
				return nil, &dialer.Error{Cluster: name, Stage: dialer.StageTunnel, Err: &dialer.NoAgentError{}}
			}
			return (&net.Dialer{}).DialContext(ctx, "tcp", address)
		}
		r.peers = peers.New(peers.Config{
			Client: hub, Namespace: "gateway", ID: id, Address: lis.Addr().String(), Credentials: keeper, Metrics: peers.NewMetrics(),
			Here: func(string) bool { return r.hasAgent.Load() },
			Forwarded: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				r.handler.Forwarded(peers.ClusterOf).ServeHTTP(w, req)
			}),
			Dial: func(ctx context.Context, name string) (net.Conn, error) {
				c, _ := r.clusters.Get(name)
				return dial(ctx, name, c.Endpoint.Host)
			},
		})
		r.gateway = newGateway(t, func(cfg *Config) {
			cfg.Forwarder = r.peers
			cfg.Dialers = func(c *cluster.Cluster, _ dialer.Purpose) (dialer.Dialer, error) {
				return dialer.New(c.Name, func(ctx context.Context, _, address string) (net.Conn, error) { return dial(ctx, c.Name, address) }), nil
			}
			if configure != nil {
				configure(cfg)
			}
		})
		ctx, stop := context.WithCancel(t.Context())
		r.stop = stop
		done := make(chan error, 2)
		server := r.peers.Server()
		go func() { done <- server.Serve(ctx, lis) }()
		go func() { done <- r.peers.Run(ctx) }()
		t.Cleanup(func() {
			stop()
			for range 2 {
				if err := <-done; err != nil {
					t.Error(err)
				}
			}
		})
		all = append(all, r)
	}
	return all
}

func (r *replica) setAgent(has bool) {
	r.hasAgent.Store(has)
	n := 0
	if has {
		n = 1
	}
	r.peers.SetAgents("edge", n)
}

// newPair returns two replicas. The only agent of the cluster, which s serves, is connected to the
// second one.
func newPair(t testing.TB, s *apiServer, configure func(*Config), pairs ...string) (a, b *replica) {
	t.Helper()
	both := newReplicas(t, configure, "a", "b")
	a, b = both[0], both[1]
	for _, r := range both {
		r.set(throughTunnel(seesIdentity(s.secret("edge", pairs...), "impersonate", "")))
	}
	b.setAgent(true)
	eventually(t, "a knows that b has the agent", func() bool { return a.peers.Elsewhere("edge") })
	return a, b
}

// TestForwarded shows that a request that another replica sends to the cluster is the same there as
// one that the replica sends itself, and that it is counted once.
func TestForwarded(t *testing.T) {
	var seen atomic.Pointer[http.Header]
	s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		h := r.Header.Clone()
		seen.Store(&h)
		w.Header().Set("Cluster-Gateway-Peer-Refused", "by the cluster") // it must not speak for a replica
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s", r.Method, r.RequestURI, body)
	})
	a, b := newPair(t, s, nil)
	headers := func(g *gateway) (http.Header, string) {
		resp, text := g.do(http.MethodPost, "edge", "/api/v1/namespaces/a%2Fb/pods?x=1&y=%zz", strings.NewReader("body"),
			userHeader, `{"Name":"jane","UID":"7","Groups":["dev","ops"],"Extra":{"example.com/team":["blue"]}}`,
			"Impersonate-Group", "system:masters", "Authorization", "Bearer callers-own", "Cookie", "a=b",
			"Cluster-Gateway-Peer-Caller", "eyJuYW1lIjoicm9vdCJ9", "Cluster-Gateway-Peer-Cluster", "other")
		wantCode(t, resp, text, http.StatusOK)
		for name := range resp.Header {
			if strings.HasPrefix(name, "Cluster-Gateway-Peer") {
				t.Errorf("the answer has the header %s", name)
			}
		}
		return *seen.Load(), text
	}
	direct, directText := headers(b.gateway)
	forwarded, text := headers(a.gateway)
	diff(t, "the headers of a forwarded request", direct, forwarded)
	diff(t, "the forwarded request", directText, text)
	if got := forwarded.Get("Impersonate-User"); got != "jane" {
		t.Errorf("the cluster sees %q", got)
	}
	const counted = "cluster_gateway_requests_total{cluster=edge,code=200,route=tunnel,verb=create} 1\n"
	for name, r := range map[string]*replica{"a": a, "b": b} {
		if all := r.metrics(); !strings.Contains(all, counted) {
			t.Errorf("%s has not counted its own request, and only that:\n%s", name, all)
		}
	}

	// The agent moves to the first replica.
	b.setAgent(false)
	a.setAgent(true)
	if moved, text := headers(a.gateway); moved.Get("Impersonate-User") != "jane" || text != directText {
		t.Errorf("the cluster got %s from %q", text, moved.Get("Impersonate-User"))
	}
}

// TestForwardedStreams shows that watches and upgrades flow through another replica, and end when
// either end does.
func TestForwardedStreams(t *testing.T) {
	ended := make(chan struct{}, 1)
	s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "" {
			echoUpgrade(w, r)
			return
		}
		for i := range 2 {
			fmt.Fprintf(w, "event %d\n", i)
			w.(http.Flusher).Flush()
		}
		<-r.Context().Done()
		ended <- struct{}{}
	})
	a, b := newPair(t, s, nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.url("edge", "/api/v1/pods?watch=true"), nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set(userHeader, "jane")
	resp, err := a.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text := make([]byte, len("event 0\nevent 1\n"))
	if _, err := io.ReadFull(resp.Body, text); err != nil || string(text) != "event 0\nevent 1\n" {
		t.Fatalf("got %q, %v", text, err)
	}
	cancel()
	within(t, maxWait, "the end of the watch at the cluster", func() { <-ended })
	eventually(t, "no watch is open", func() bool { return a.handler.streams.Load()+b.handler.streams.Load() == 0 })

	conn := a.raw("POST " + basePath + "edge/proxy/tail HTTP/1.1\r\nHost: gateway\r\n" + userHeader + ": jane\r\nConnection: Upgrade\r\nUpgrade: test\r\nContent-Length: 0\r\n\r\n")
	br := bufio.NewReader(conn)
	if answer, err := http.ReadResponse(br, nil); err != nil || answer.StatusCode != http.StatusSwitchingProtocols || answer.Header.Get("Set-Cookie") != "" {
		t.Fatalf("got %+v, %v", answer, err)
	}
	sent := strings.Repeat("0123456789abcdef", 1<<16)
	go func() {
		_, _ = io.WriteString(conn, sent)
		_ = conn.CloseWrite()
	}()
	if got, err := io.ReadAll(br); err != nil || string(got) != sent+" and the rest" {
		t.Errorf("the upgrade carried %d bytes, %v", len(got), err)
	}
	eventually(t, "no upgrade is open", func() bool { return a.handler.streams.Load()+b.handler.streams.Load() == 0 })
}

// TestForwardedFailures shows what a caller reads when the other replica cannot serve, or is gone.
func TestForwardedFailures(t *testing.T) {
	cut := make(chan struct{})
	s := newAPIServer(t, func(_ http.ResponseWriter, r *http.Request) {
		close(cut)
		<-r.Context().Done()
	})
	a, b := newPair(t, s, func(cfg *Config) { cfg.RequestTimeout = maxWait })
	status := func(want int, part string) {
		t.Helper()
		resp, text := a.get("edge", "/api", userHeader, "jane")
		var s metav1.Status
		if err := json.Unmarshal([]byte(text), &s); err != nil || resp.StatusCode != want || !strings.Contains(s.Message, part) {
			t.Errorf("got %d %s, want %d and %q", resp.StatusCode, text, want, part)
		}
	}
	go func() { <-cut; b.stop() }()
	status(http.StatusBadGateway, "the connection to that replica broke")
	eventually(t, "a knows that b is away", func() bool { return !a.peers.Elsewhere("edge") })
	status(http.StatusServiceUnavailable, "no agent is connected")
}

// TestForwardedOnce shows that a request makes one hop, and that a replica serves no other cluster
// than the one for which it was forwarded.
func TestForwardedOnce(t *testing.T) {
	s := newAPIServer(t, ok)
	a, b := newPair(t, s, nil)
	value, err := encodeHeader(caller{Name: "jane"})
	if err != nil {
		t.Fatal(err)
	}
	forwardTo := func(r *replica, clusterName, path string, header ...string) *httptest.ResponseRecorder {
		w, req := httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, path, nil)
		req.Header[headerCaller] = header
		r.handler.Forwarded(func(context.Context) string { return clusterName }).ServeHTTP(w, req)
		return w
	}
	on := basePath + "edge/proxy/api"
	if w := forwardTo(b, "edge", on, value); w.Code != http.StatusOK {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
	if w := forwardTo(a, "edge", on, value); w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "no agent is connected") {
		t.Errorf("a request was forwarded twice: %d %s", w.Code, w.Body)
	}
	for what, w := range map[string]*httptest.ResponseRecorder{
		"another cluster": forwardTo(b, "other", on, value), "no caller": forwardTo(b, "edge", on), "two callers": forwardTo(b, "edge", on, value, value),
		"an invalid caller": forwardTo(b, "edge", on, "x"), "another path": forwardTo(b, "edge", "/metrics", value),
		"an ambiguous name": forwardTo(b, "edge", basePath+"%65dge/proxy/api", value),
	} {
		if w.Code != http.StatusBadRequest {
			t.Errorf("%s: got %d %s", what, w.Code, w.Body)
		}
	}
}

// TestOwnRequestsThroughAnotherReplica shows that probes reach the cluster, and how they fail.
func TestOwnRequestsThroughAnotherReplica(t *testing.T) {
	s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+testToken || r.Header.Get("Impersonate-User") != "" {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	a, b := newPair(t, s, nil)
	ctx, cancel := context.WithTimeout(t.Context(), maxWait)
	defer cancel()
	readiness, err := a.handler.Ready(ctx, "edge")
	if err != nil || !readiness.Certificate.Equal(s.Certificate()) {
		t.Errorf("got %+v, %v: the certificate must be the API server's", readiness, err)
	}
	b.setAgent(false)
	eventually(t, "a knows that b has no agent", func() bool { return !a.peers.Elsewhere("edge") })
	if _, err := a.handler.Ready(ctx, "edge"); err == nil || !strings.Contains(err.Error(), "no agent is connected") {
		t.Errorf("got %v", err)
	}
}

// BenchmarkForwarded compares a GET that another replica sends to the cluster with one that the
// replica sends itself, in turn, and reports the ratio of their times.
func BenchmarkForwarded(b *testing.B) {
	s := newAPIServer(b, ok)
	first, second := newPair(b, s, nil)
	took := map[*replica]time.Duration{}
	for b.Loop() {
		for _, r := range []*replica{first, second} {
			began := time.Now()
			if resp, text := r.get("edge", "/api", userHeader, "jane"); resp.StatusCode != http.StatusOK {
				b.Fatal(text)
			}
			took[r] += time.Since(began)
		}
	}
	b.ReportMetric(float64(took[first])/float64(took[second]), "×own")
}
