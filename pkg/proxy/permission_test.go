// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apiserver/pkg/authorization/authorizer"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/policy"
)

// hubRules is a hub that allows some users everything, and everybody something in some clusters. It
// records what it is asked.
type hubRules struct {
	mu sync.Mutex
	// allowed are names of users, and groups are API groups.
	allowed, groups map[string]bool
	away            bool
	asked           []string
}

func (h *hubRules) Authorize(_ context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if a.IsResourceRequest() {
		h.asked = append(h.asked, strings.Join([]string{a.GetVerb(), a.GetAPIGroup(), a.GetResource(), a.GetSubresource(), a.GetNamespace(), a.GetName()}, "|"))
	} else {
		h.asked = append(h.asked, a.GetVerb()+"|"+a.GetPath())
	}
	switch {
	case h.away:
		return authorizer.DecisionNoOpinion, "", errors.New("the hub does not answer")
	case h.allowed[a.GetUser().GetName()], h.groups[a.GetAPIGroup()]:
		return authorizer.DecisionAllow, "", nil
	default:
		return authorizer.DecisionNoOpinion, "", nil
	}
}

// take returns what the hub was asked since the last call.
func (h *hubRules) take() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	asked := h.asked
	h.asked = nil
	return asked
}

func (h *hubRules) set(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
}

// authorizing makes a gateway authorize requests, and check open streams all the time.
func authorizing(h *hubRules, requests bool) func(*Config) {
	return func(c *Config) {
		c.Authorizer = policy.New(policy.Config{Hub: h, Proxied: requests})
		c.AuthorizeRequests, c.RecheckInterval = requests, 5*time.Millisecond
	}
}

// TestRequestIsAuthorized checks what the hub is asked about each request, and that a request that
// is not allowed does not reach the cluster.
func TestRequestIsAuthorized(t *testing.T) {
	t.Parallel()
	const byLabel = "clusters:env=staging"
	for name, test := range map[string]struct {
		method, path string
		header       []string
		// asked is what the hub is asked with the API group of the label; empty means nothing.
		asked string
	}{
		"list":             {path: "/api/v1/namespaces/shop/pods", asked: "list|" + byLabel + "|pods||shop|"},
		"one object":       {path: "/apis/apps/v1/namespaces/shop/deployments/web", asked: "get|" + byLabel + "|deployments.apps||shop|web"},
		"log":              {path: "/api/v1/namespaces/shop/pods/web/log?follow=true", asked: "get|" + byLabel + "|pods|log|shop|web"},
		"watch":            {path: "/api/v1/pods?watch=true", asked: "watch|" + byLabel + "|pods|||"},
		"deprecated watch": {path: "/api/v1/watch/namespaces/shop/pods", asked: "watch|" + byLabel + "|pods||shop|"},
		"delete":           {method: "DELETE", path: "/api/v1/nodes/n", asked: "delete|" + byLabel + "|nodes|||n"},
		"delete all":       {method: "DELETE", path: "/api/v1/namespaces/shop/pods", asked: "deletecollection|" + byLabel + "|pods||shop|"},
		"dry run":          {method: "POST", path: "/api/v1/namespaces/shop/pods?dryRun=All", asked: "create|" + byLabel + "|pods||shop|"},
		"named by a field": {path: "/api/v1/namespaces/shop/secrets?fieldSelector=metadata.name%3Dx", asked: "list|" + byLabel + "|secrets||shop|x"},
		"escaped slash":    {path: "/api/v1/namespaces/shop%2Fsecrets/x", asked: "get|" + byLabel + "|secrets||shop|x"},
		"double slash":     {path: "//api/v1/namespaces/shop/pods", asked: "list|" + byLabel + "|pods||shop|"},
		"path":             {path: "/metrics", asked: "get|/" + byLabel + "/metrics"},
		"discovery":        {path: "/apis/apps/v1"},
		"version":          {path: "/version"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			reached := make(chan string, 1)
			s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
				reached <- r.RequestURI
				ok(w, r)
			})
			hub := &hubRules{allowed: map[string]bool{"jane": true}}
			g := newGateway(t, authorizing(hub, true))
			secret := s.secret("a")
			secret.Labels["env"] = "staging"
			g.set(secret)
			method := test.method
			if method == "" {
				method = http.MethodGet
			}
			resp, body := g.do(method, "a", test.path, nil, append([]string{userHeader, "joe"}, test.header...)...)
			if test.asked == "" {
				wantCode(t, resp, body, http.StatusOK)
				diff(t, "path at the cluster", test.path, <-reached)
				diff(t, "questions", 0, len(hub.take()))
				return
			}
			wantCode(t, resp, body, http.StatusForbidden)
			if asked := strings.Join(hub.take(), " "); !strings.Contains(" "+asked+" ", " "+test.asked+" ") {
				t.Errorf("the hub was asked %q, want %q among it", asked, test.asked)
			}
			select {
			case path := <-reached:
				t.Fatalf("the cluster got %s", path)
			default:
			}
			resp, body = g.do(method, "a", test.path, nil, append([]string{userHeader, "jane"}, test.header...)...)
			wantCode(t, resp, body, http.StatusOK)
			diff(t, "path at the cluster", test.path, <-reached)
		})
	}
}

// TestAmbiguousPathIsRefused: a path that servers could read in different ways is not authorized,
// also for a caller who may do everything.
func TestAmbiguousPathIsRefused(t *testing.T) {
	t.Parallel()
	s := newAPIServer(t, func(_ http.ResponseWriter, r *http.Request) { t.Errorf("the cluster got %s", r.RequestURI) })
	hub := &hubRules{allowed: map[string]bool{"jane": true}}
	g := newGateway(t, authorizing(hub, true))
	g.set(s.secret("a"))
	for _, path := range []string{
		"/api/v1/namespaces/shop/pods/../secrets/x",
		"/api/v1/namespaces/shop/pods/%2e%2e/secrets/x",
		"/api/v1/namespaces/shop/pods/..%2fsecrets",
		"/api/v1/namespaces/shop/pods/..%5csecrets",
		"/api/v1/namespaces/shop/pods/%252e%252e/secrets",
		"/api/v1/namespaces/shop/pods/..;a/secrets",
		"/api/v1/namespaces//pods",
		"/api/v1//secrets",
		"/api/v1/namespaces/shop%252Fsecrets",
		"/api/v1/namespaces/shop/pods/web%252Fexec",
		"/api/v1/namespaces/shop/pods/web;x/log",
		"/api/v1/namespaces/shop/pods/web%5Cexec",
		"/version/../api/v1/secrets",
		"/version//../api/v1/secrets",
		"/openapi%252F..%252Fapi",
		"/metrics%5C..%5Capi",
	} {
		resp, body := g.get("a", path, userHeader, "jane")
		if resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %d %s", path, resp.StatusCode, body)
		}
	}
	diff(t, "questions", []string(nil), hub.take())
}

// TestApplicationPathIsNotAmbiguous: what follows the proxy subresource is for the application.
func TestApplicationPathIsNotAmbiguous(t *testing.T) {
	t.Parallel()
	const path = "/api/v1/namespaces/shop/services/web/proxy/a%2520b//c;d=e/%5C"
	reached := make(chan string, 1)
	s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) { reached <- r.RequestURI; ok(w, r) })
	g := newGateway(t, authorizing(&hubRules{allowed: map[string]bool{"jane": true}}, true))
	g.set(s.secret("a"))
	resp, body := g.get("a", path, userHeader, "jane")
	wantCode(t, resp, body, http.StatusOK)
	diff(t, "path at the cluster", path, <-reached)
}

// TestHubAwayRefuses: a request that cannot be authorized is not sent.
func TestHubAwayRefuses(t *testing.T) {
	t.Parallel()
	s := newAPIServer(t, func(_ http.ResponseWriter, r *http.Request) { t.Errorf("the cluster got %s", r.RequestURI) })
	g := newGateway(t, authorizing(&hubRules{away: true}, true))
	g.set(s.secret("a"))
	resp, body := g.get("a", "/api/v1/pods", userHeader, "jane")
	wantCode(t, resp, body, http.StatusServiceUnavailable)
	resp, body = g.get("a", "/api/v1/pods") // without a user
	wantCode(t, resp, body, http.StatusServiceUnavailable)
}

// TestLostPermissionEndsStreams: a watch and an upgraded connection end when their caller loses the
// permission, and not when the hub does not answer. That is so with and without rules for requests.
func TestLostPermissionEndsStreams(t *testing.T) {
	t.Parallel()
	for name, requests := range map[string]bool{"requests": true, "door": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			hub := &hubRules{allowed: map[string]bool{"jane": true, "joe": true}}
			g := newGateway(t, authorizing(hub, requests))
			g.set(newAPIServer(t, echoUpgrade).secret("upgrades"))
			g.set(newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
				w.WriteHeader(http.StatusOK)
				_ = http.NewResponseController(w).Flush()
				<-r.Context().Done()
			}).secret("watches"))

			watch, watchEnd := g.open(http.MethodGet, "watches", "/api/v1/pods?watch=true", "jane")
			defer watch.Body.Close()
			others, othersEnd := g.open(http.MethodGet, "watches", "/api/v1/pods?watch=true", "joe")
			defer others.Body.Close()
			conn := g.raw("POST " + basePath + "upgrades/proxy/api/v1/namespaces/shop/pods/web/exec HTTP/1.1\r\nHost: gateway\r\n" +
				userHeader + ": jane\r\nConnection: Upgrade\r\nUpgrade: test\r\nContent-Length: 0\r\n\r\n")
			br := bufio.NewReader(conn)
			resp, err := http.ReadResponse(br, nil)
			if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
				t.Fatal(resp, err)
			}

			hub.set(func() { hub.away = true })
			hub.take()
			eventually(t, "several checks of each stream", func() bool { return hub.count() > 20 })
			select {
			case err := <-watchEnd:
				t.Fatalf("the watch ended while the hub was away: %v", err)
			case err := <-othersEnd:
				t.Fatalf("the watch of another user ended while the hub was away: %v", err)
			default:
			}
			if _, err := conn.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if b, err := br.ReadByte(); err != nil || b != 'x' {
				t.Fatalf("echo while the hub was away: %q %v", b, err)
			}

			hub.set(func() { hub.away, hub.allowed["jane"] = false, false })
			within(t, maxWait, "the end of the watch", func() {
				if err := <-watchEnd; err != nil {
					t.Errorf("the watch did not end as watches do: %v", err)
				}
			})
			within(t, maxWait, "the end of the upgraded connection", func() { _, _ = io.ReadAll(br) })
			hub.take()
			eventually(t, "more checks", func() bool { return hub.count() > 20 })
			select {
			case err := <-othersEnd:
				t.Errorf("the watch of another user ended: %v", err)
			default:
			}
			eventually(t, "the metrics", func() bool {
				m := g.metrics()
				return strings.Contains(m, "streams_revoked_total{cluster=watches,route=direct} 1\n") && strings.Contains(m, "streams_revoked_total{cluster=upgrades,route=direct} 1\n")
			})
		})
	}
}

// TestChangedLabelEndsStreams: a watch that a rule by label allows ends when the cluster loses the
// label. The watch of a user who does not need that rule stays open.
func TestChangedLabelEndsStreams(t *testing.T) {
	t.Parallel()
	hub := &hubRules{allowed: map[string]bool{"joe": true}, groups: map[string]bool{v1alpha1.GroupName: true, "clusters:env=staging": true}}
	g := newGateway(t, authorizing(hub, true))
	s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	secret := s.secret("a")
	secret.Labels["env"] = "staging"
	g.set(secret)
	watch, watchEnd := g.open(http.MethodGet, "a", "/api/v1/pods?watch=true", "jane")
	defer watch.Body.Close()
	others, othersEnd := g.open(http.MethodGet, "a", "/api/v1/pods?watch=true", "joe")
	defer others.Body.Close()

	secret.Labels["env"] = "production"
	g.set(secret)
	within(t, maxWait, "the end of the watch", func() { <-watchEnd })
	hub.take()
	eventually(t, "more checks", func() bool { return hub.count() > 20 })
	select {
	case err := <-othersEnd:
		t.Errorf("the watch of another user ended: %v", err)
	default:
	}
}

// open starts a request of a user, and reports how its body ends.
func (g *gateway) open(method, name, path, as string) (*http.Response, <-chan error) {
	g.t.Helper()
	req, err := http.NewRequestWithContext(g.t.Context(), method, g.url(name, path), nil)
	if err != nil {
		g.t.Fatal(err)
	}
	req.Header.Set(userHeader, as)
	resp, err := g.client.Do(req)
	if err != nil {
		g.t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		g.t.Fatal(resp.Status)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, resp.Body)
		ended <- err
	}()
	return resp, ended
}

func (h *hubRules) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.asked)
}
