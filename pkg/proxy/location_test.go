// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"net/http"
	"strings"
	"testing"
)

func TestLocation(t *testing.T) {
	const location = "X-Location"
	s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", r.Header.Get(location))
		code := http.StatusTemporaryRedirect
		if r.Method == http.MethodPost {
			code = http.StatusCreated
		}
		w.WriteHeader(code)
	})
	g := newGateway(t, nil)
	g.set(s.secret("a"))
	g.set(s.secret("c1", "endpoint", s.URL+"/k8s/c1"))
	a, c1 := basePath+"a/proxy", basePath+"c1/proxy"
	for _, test := range []struct{ cluster, location, want string }{
		{"a", "/api/v1/?x=1#f", a + "/api/v1/?x=1#f"},
		{"a", s.URL + "/x%2Fy", a + "/x%2Fy"},
		{"a", strings.Replace(s.URL, "https:", "", 1) + "/x", a + "/x"},
		{"a", "next", a + "/dir/next"},
		{"a", "?y", a + "/dir/page?y"},
		{"a", "../x", a + "/x"},
		{"a", s.URL, a + "/"},
		{"c1", "/k8s/c1/x", c1 + "/x"},
		{"c1", "/k8s/c1", c1 + "/"},
		{"c1", "x", c1 + "/dir/x"},
		// The dots end at the cluster's root, and not at the gateway's.
		{"a", "../../../../../../b/proxy/x", a + "/b/proxy/x"},
		{"a", "/../../b/proxy/x", a + "/b/proxy/x"},
		// Away from the cluster.
		{"c1", "/k8s/c10/x", ""},
		{"c1", "/login", ""},
		{"c1", "../../c2/x", ""},
		{"c1", "/k8s/c1/%2e%2e/c2", ""},
		{"c1", "/k8s/c1/..%2fc2", ""},
		{"a", "/%2e%2e/%2e%2e/b/proxy/x", ""},
		{"a", "https://elsewhere.example/x", ""},
		{"a", "//elsewhere.example/x", ""},
		{"a", "https://127.0.0.1/x", ""},
		{"a", g.server.URL + basePath + "b/proxy/x", ""},
		{"a", "javascript:alert(1)", ""},
		{"a", "https://%zz/", ""},
	} {
		resp, body := g.get(test.cluster, "/dir/page", location, test.location)
		switch got := resp.Header.Get("Location"); {
		case test.want == "" && (resp.StatusCode != http.StatusBadGateway || got != ""):
			t.Errorf("%s %s: %s to %q, want a 502: %s", test.cluster, test.location, resp.Status, got, body)
		case test.want != "" && (resp.StatusCode != http.StatusTemporaryRedirect || got != test.want):
			t.Errorf("%s %s: %s to %q, want %q: %s", test.cluster, test.location, resp.Status, got, test.want, body)
		}
	}
	resp, body := g.do(http.MethodPost, "a", "/things", nil, location, "/things/1")
	wantCode(t, resp, body, http.StatusCreated)
	diff(t, "Location of a 201", a+"/things/1", resp.Header.Get("Location"))
}
