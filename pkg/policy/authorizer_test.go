// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
)

// rules is a hub that allows and denies by virtual API group and verb. It counts the checks.
type rules struct {
	allow, deny, fail map[string]bool
	asked             atomic.Int64
	// hold, if it is not nil, is received from before each answer.
	hold chan struct{}
}

var errHubAway = errors.New("the hub does not answer")

func (r *rules) Authorize(ctx context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
	r.asked.Add(1)
	if r.hold != nil {
		select {
		case <-r.hold:
		case <-ctx.Done():
			return authorizer.DecisionNoOpinion, "", ctx.Err()
		}
	}
	key := a.GetAPIGroup() + " " + a.GetVerb()
	switch {
	case r.deny[key]:
		return authorizer.DecisionDeny, "denied", nil
	case r.allow[key]:
		return authorizer.DecisionAllow, "", nil
	case r.fail[key]:
		return authorizer.DecisionNoOpinion, "", errHubAway
	default:
		return authorizer.DecisionNoOpinion, "no rule", nil
	}
}

func request(verbs ...string) *Request {
	return &Request{
		User: &user.DefaultInfo{Name: "jane", Groups: []string{"developers"}}, Cluster: "edge-1", Labels: map[string]string{"env": "staging"},
		Target: Target{Resource: true, Verbs: verbs, Kind: "pods", Namespace: "shop"},
	}
}

func set(keys ...string) map[string]bool {
	m := map[string]bool{}
	for _, key := range keys {
		m[key] = true
	}
	return m
}

func TestAuthorize(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		hub     *rules
		request *Request
		off     bool
		want    string
		// failed is set if the error must not be a refusal.
		failed bool
	}{
		"no rule":            {hub: &rules{}, request: request("list"), want: `user "jane" cannot list pods in namespace "shop" in cluster "edge-1": no rule`},
		"off":                {hub: &rules{}, request: request("list"), off: true},
		"by label":           {hub: &rules{allow: set("clusters:env=staging list")}, request: request("list")},
		"by name":            {hub: &rules{allow: set("cluster:edge-1 list")}, request: request("list")},
		"all clusters":       {hub: &rules{allow: set("clusters list")}, request: request("list")},
		"another label":      {hub: &rules{allow: set("clusters:env=prod list")}, request: request("list"), want: `user "jane" cannot list pods in namespace "shop" in cluster "edge-1": no rule`},
		"another cluster":    {hub: &rules{allow: set("cluster:edge-2 list")}, request: request("list"), want: `user "jane" cannot list pods in namespace "shop" in cluster "edge-1": no rule`},
		"another verb":       {hub: &rules{allow: set("clusters get")}, request: request("list"), want: `user "jane" cannot list pods in namespace "shop" in cluster "edge-1": no rule`},
		"one of two verbs":   {hub: &rules{allow: set("clusters get")}, request: request("get", "create"), want: `user "jane" cannot create pods in namespace "shop" in cluster "edge-1": no rule`},
		"verbs by two rules": {hub: &rules{allow: set("clusters get", "cluster:edge-1 create")}, request: request("get", "create")},
		"denied":             {hub: &rules{allow: set("clusters list"), deny: set("cluster:edge-1 list")}, request: request("list"), want: `user "jane" cannot list pods in namespace "shop" in cluster "edge-1": denied`},
		"hub away": {
			hub: &rules{fail: set("clusters list")}, request: request("list"), failed: true,
			want: `cannot check what user "jane" may do in cluster "edge-1": the hub does not answer`,
		},
		"discovery": {hub: &rules{}, request: &Request{Cluster: "edge-1", Target: Target{Verbs: []string{"get"}, Path: "/apis/apps/v1"}}},
		"a path": {
			hub: &rules{}, request: &Request{User: &user.DefaultInfo{Name: "jane"}, Cluster: "edge-1", Target: Target{Verbs: []string{"get"}, Path: "/metrics"}},
			want: `user "jane" cannot get the path "/metrics" in cluster "edge-1": no rule`,
		},
		"a write to discovery": {
			hub: &rules{}, request: &Request{User: &user.DefaultInfo{Name: "jane"}, Cluster: "edge-1", Target: Target{Verbs: []string{"post"}, Path: "/api"}},
			want: `user "jane" cannot post the path "/api" in cluster "edge-1": no rule`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := New(Config{Hub: test.hub, Proxied: !test.off}).Authorize(t.Context(), test.request)
			got := ""
			if err != nil {
				got = err.Error()
			}
			if got != test.want {
				t.Errorf("%q, want %q", got, test.want)
			}
			var forbidden *ForbiddenError
			if errors.As(err, &forbidden) != (test.want != "" && !test.failed) {
				t.Errorf("%T", err)
			}
		})
	}
}

// TestDecisionsAreKept: the hub is asked once for the same request, and again after the TTL, and a
// failure is not kept.
func TestDecisionsAreKept(t *testing.T) {
	t.Parallel()
	hub := &rules{allow: set("clusters list")}
	kept := New(Config{Hub: hub, Proxied: true, AllowTTL: time.Hour, DenyTTL: time.Hour})
	forgotten := New(Config{Hub: hub, Proxied: true})
	for _, test := range []struct {
		authorizer *Authorizer
		request    *Request
		asks       int64
	}{
		{kept, request("list"), 3}, {kept, request("list"), 0}, {kept, request("get"), 3}, {kept, request("get"), 0},
		{forgotten, request("list"), 3}, {forgotten, request("list"), 3}, {forgotten, request("get"), 3}, {forgotten, request("get"), 3},
	} {
		before := hub.asked.Load()
		_ = test.authorizer.Authorize(t.Context(), test.request) // the number of checks matters
		if asks := hub.asked.Load() - before; asks != test.asks {
			t.Errorf("%v: the hub was asked %d times, want %d", test.request.Target.Verbs, asks, test.asks)
		}
	}
	away := &rules{fail: set("clusters list")}
	a := New(Config{Hub: away, Proxied: true, AllowTTL: time.Hour, DenyTTL: time.Hour})
	if err := a.Authorize(t.Context(), request("list")); !errors.Is(err, errHubAway) {
		t.Fatal(err)
	}
	away.fail, away.allow = nil, set("clusters list")
	if err := a.Authorize(t.Context(), request("list")); err != nil {
		t.Errorf("after the hub is back: %v", err)
	}
}

// TestDecisionKeys: what differs in anything that the hub sees is another decision.
func TestDecisionKeys(t *testing.T) {
	t.Parallel()
	variants := map[string]func(*Request){
		"same":      func(*Request) {},
		"user":      func(r *Request) { r.User = &user.DefaultInfo{Name: "joe", Groups: []string{"developers"}} },
		"UID":       func(r *Request) { r.User = &user.DefaultInfo{Name: "jane", UID: "1", Groups: []string{"developers"}} },
		"groups":    func(r *Request) { r.User = &user.DefaultInfo{Name: "jane", Groups: []string{"dev", "elopers"}} },
		"no groups": func(r *Request) { r.User = &user.DefaultInfo{Name: "jane"} },
		"extra": func(r *Request) {
			r.User = &user.DefaultInfo{Name: "jane", Groups: []string{"developers"}, Extra: map[string][]string{"a": {"b"}}}
		},
		"extra keys": func(r *Request) {
			r.User = &user.DefaultInfo{Name: "jane", Groups: []string{"developers"}, Extra: map[string][]string{"a": nil, "b": nil}}
		},
		"cluster":   func(r *Request) { r.Cluster = "edge-2" },
		"labels":    func(r *Request) { r.Labels = map[string]string{"env": "prod"} },
		"verb":      func(r *Request) { r.Target.Verbs = []string{"get"} },
		"group":     func(r *Request) { r.Target.Group = "apps" },
		"kind":      func(r *Request) { r.Target.Kind = "secrets" },
		"sub":       func(r *Request) { r.Target.Subresource = "log" },
		"namespace": func(r *Request) { r.Target.Namespace = "" },
		"name":      func(r *Request) { r.Target.Name = "web" },
		"path":      func(r *Request) { r.Target = Target{Verbs: []string{"list"}, Path: "/pods"} },
	}
	seen := map[string]string{}
	for name, change := range variants {
		r := request("list")
		change(r)
		key := decisionKey(r.checks(r.Target.Verbs[0]))
		if other, twice := seen[key]; twice {
			t.Errorf("%s has the key of %s", name, other)
		}
		seen[key] = name
	}
}

// TestConcurrentDecisionsAskOnce: callers who wait for the same decision share one question, and it
// does not end with the request of the first of them.
func TestConcurrentDecisionsAskOnce(t *testing.T) {
	t.Parallel()
	hub := &rules{allow: set("clusters list"), hold: make(chan struct{})}
	a := New(Config{Hub: hub, Proxied: true, AllowTTL: time.Hour})
	impatient, leave := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() { gone <- a.Authorize(impatient, request("list")) }()
	for hub.asked.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	var others sync.WaitGroup
	for range 20 {
		others.Go(func() {
			if err := a.Authorize(t.Context(), request("list")); err != nil {
				t.Error(err)
			}
		})
	}
	leave()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Errorf("the request that was canceled: %v", err)
	}
	close(hub.hold)
	others.Wait()
	if asked := hub.asked.Load(); asked != 3 {
		t.Errorf("the hub was asked %d times, want 3", asked)
	}
}

// TestStillAllowed checks the door, and then the request itself.
func TestStillAllowed(t *testing.T) {
	t.Parallel()
	door := func(verb string) authorizer.Attributes {
		return authorizer.AttributesRecord{User: &user.DefaultInfo{Name: "jane"}, ResourceRequest: true, Verb: verb, APIGroup: "gateway", Resource: "clustergateways", Subresource: "proxy"}
	}
	for name, test := range map[string]struct {
		allow []string
		off   bool
		want  bool
	}{
		"both":                  {allow: []string{"gateway get", "gateway create", "clusters list"}, want: true},
		"one verb of the door":  {allow: []string{"gateway get", "clusters list"}},
		"only the door":         {allow: []string{"gateway get", "gateway create"}},
		"only the door, off":    {allow: []string{"gateway get", "gateway create"}, off: true, want: true},
		"only the request":      {allow: []string{"clusters list"}},
		"only the request, off": {allow: []string{"clusters list"}, off: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := request("list")
			r.Door = []authorizer.Attributes{door("get"), door("create")}
			err := New(Config{Hub: &rules{allow: set(test.allow...)}, Proxied: !test.off}).StillAllowed(t.Context(), r)
			var forbidden *ForbiddenError
			if (err == nil) != test.want || err != nil && !errors.As(err, &forbidden) {
				t.Errorf("%v", err)
			}
		})
	}
}
