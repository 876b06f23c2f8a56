// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/endpoints/request"
)

func TestParseTarget(t *testing.T) {
	for path, want := range map[string]*target{
		basePath + "a/proxy":                  {cluster: "a", prefix: basePath + "a/proxy", rawPath: "/"},
		basePath + "a/proxy/":                 {cluster: "a", prefix: basePath + "a/proxy", rawPath: "/"},
		basePath + "a/proxy/api/v1":           {cluster: "a", prefix: basePath + "a/proxy", rawPath: "/api/v1"},
		basePath + "a.b-c/proxy/x":            {cluster: "a.b-c", prefix: basePath + "a.b-c/proxy", rawPath: "/x"},
		basePath + "a/proxy//x//":             {cluster: "a", prefix: basePath + "a/proxy", rawPath: "//x//"},
		basePath + "a/proxy/x%2Fy":            {cluster: "a", prefix: basePath + "a/proxy", rawPath: "/x%2Fy"},
		basePath + "a/proxy/x|y%2fz":          {cluster: "a", prefix: basePath + "a/proxy", rawPath: "/x%7Cy%2fz"},
		basePath + "a/proxy/%00":              {cluster: "a", prefix: basePath + "a/proxy", rawPath: "/%00"},
		basePath + "a/proxy/../b/proxy/x":     {cluster: "a", prefix: basePath + "a/proxy", rawPath: "/../b/proxy/x"},
		basePath + "a/proxy/proxy/proxy":      {cluster: "a", prefix: basePath + "a/proxy", rawPath: "/proxy/proxy"},
		basePath + "a/proxy/%C3%A9":           {cluster: "a", prefix: basePath + "a/proxy", rawPath: "/%C3%A9"},
		basePath + "a/proxyx":                 nil,
		basePath + "a/proxy%2Fx":              nil,
		basePath + "a/prox%79/x":              nil,
		basePath + "%61/proxy/x":              nil,
		basePath + "a%2Fproxy/x":              nil,
		basePath + "a%00/proxy/x":             nil,
		basePath + "/proxy/x":                 nil,
		basePath + "a//proxy/x":               nil,
		basePath + "a":                        nil,
		basePath + "":                         nil,
		"/api/v1":                             nil,
		"/" + basePath + "a/proxy/x":          nil,
		strings.ToUpper(basePath) + "a/proxy": nil,
	} {
		u, err := url.ParseRequestURI(path)
		if err != nil {
			t.Fatal(err)
		}
		got, ok := parseTarget(u, basePath)
		switch {
		case want == nil && ok:
			t.Errorf("%s: got %+v, want none", path, got)
		case want != nil && (!ok || got != *want):
			t.Errorf("%s: got %+v, %v, want %+v", path, got, ok, *want)
		}
	}
}

// The path and the query arrive unchanged, byte for byte.
func TestPathAndQueryAreUnchanged(t *testing.T) {
	received := make(chan string, 1)
	s := newAPIServer(t, func(_ http.ResponseWriter, r *http.Request) { received <- r.RequestURI })
	g := newGateway(t, nil)
	g.set(s.secret("plain"))
	g.set(s.secret("below", "endpoint", s.URL+"/k8s/clusters/c%2D1/"))
	for _, sent := range []string{
		"/", "/api/v1/namespaces", "//x", "/x//y/", "/x%2Fy", "/x%2fy", "/%00", "/a%20b+c", "/x%7Cy", "/%c3%a9", "/a:b;c=d,e", "/~",
		"/x?", "/x?a=1;b", "/x?%zz", "/x?a=%zz&b=2", "/x?a=1&a=2&", "/x??a", "/x?a=/../b", "/x?watch=0&limit=500&continue=a%3D%3D", "/x?dryRun=All",
		"/x?" + strings.Repeat("a&", 11000),
	} {
		for name, prefix := range map[string]string{"plain": "", "below": "/k8s/clusters/c%2D1"} {
			// Written by hand, over HTTP/1.1, because a client would correct it.
			conn := g.raw("GET " + basePath + name + "/proxy" + sent + " HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n")
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatalf("%.40s: %v", sent, err)
			}
			_ = resp.Body.Close()
			if resp.StatusCode != 200 {
				t.Errorf("%s %.40s: %s", name, sent, resp.Status)
				continue
			}
			if got := <-received; got != prefix+sent {
				t.Errorf("%s: sent %.60s, arrived as %.60s", name, sent, got)
			}
			_ = conn.Close()
		}
	}
}

// A path cannot leave the path of the cluster's endpoint: the same host may serve other clusters.
func TestPathStaysBelowEndpoint(t *testing.T) {
	received := make(chan string, 1)
	s := newAPIServer(t, func(_ http.ResponseWriter, r *http.Request) { received <- r.RequestURI })
	g := newGateway(t, nil)
	g.set(s.secret("plain"))
	g.set(s.secret("a", "endpoint", s.URL+"/clusters/a"))
	for _, path := range []string{
		"/../b/api", "/x/../../b", "/%2e%2e/b", "/.%2E/b", "/..%2fb", "/x%2f..%2f..%2fb", "/%252e%252e/b", "/..;x/b", "/..%5cb", "/./b", "/..", "/x/..?a=1",
	} {
		g.t = t
		conn := g.raw("GET " + basePath + "a/proxy" + path + " HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		select {
		case got := <-received:
			t.Errorf("%s arrived as %s", path, got)
		default:
			if resp.StatusCode != 400 {
				t.Errorf("%s: %s", path, resp.Status)
			}
		}
		_ = conn.Close()
	}
}

func TestRefusedPaths(t *testing.T) {
	s := newAPIServer(t, func(http.ResponseWriter, *http.Request) { t.Error("a request got through") })
	g := newGateway(t, nil)
	g.set(s.secret("a"))
	for line, want := range map[string]int{
		"GET " + basePath + "%61/proxy/x":                                                400,
		"GET " + basePath + "a%2Fproxy/proxy/x":                                          400,
		"GET " + basePath + "a/pr%6fxy/x":                                                400,
		"GET " + basePath + "a/status":                                                   400,
		"GET " + basePath + "b/proxy/x":                                                  404,
		"GET " + basePath + "a%00/proxy/x":                                               400,
		"TRACE " + basePath + "a/proxy/x":                                                405,
		"CONNECT " + basePath + "a/proxy/x":                                              405,
		"GET /apis/cluster.core.oam.dev/v1alpha1/namespaces/n/clustergateways/a/proxy/x": 400,
		"GET /apis/cluster.core.oam.dev/v1alpha1/watch/clustergateways/a/proxy/x":        400,
	} {
		conn := g.raw(line + " HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		_ = conn.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: %s, want %d", line, resp.Status, want)
		}
	}
}

func FuzzRewrite(f *testing.F) {
	for _, seed := range []string{
		basePath + "a/proxy/api/v1?x=1", basePath + "a/proxy/x%2Fy?a=1;b", basePath + "a/proxy/../../b/proxy/x", basePath + "a%2fb/proxy/x",
		basePath + "a/proxy//x?%zz", basePath + "a/proxy/|%2f", basePath + "a/proxy/%00?", basePath + "a/proxy", "//h" + basePath + "a/proxy/x",
		basePath + "a/proxy/%252e%252e/x", "/x/.." + basePath + "a/proxy/x", "*", "https://h" + basePath + "a/proxy/x",
	} {
		f.Add(seed, "/k8s/c-1")
	}
	resolver := &request.RequestInfoFactory{APIPrefixes: sets.NewString("api", "apis"), GrouplessAPIPrefixes: sets.NewString("api")}
	f.Fuzz(func(t *testing.T, uri, below string) {
		u, err := url.ParseRequestURI(uri)
		if err != nil {
			return
		}
		endpoint, err := url.Parse("https://a.example:6443" + below)
		if err != nil || endpoint.Host != "a.example:6443" || endpoint.RawQuery != "" || endpoint.Fragment != "" ||
			strings.HasSuffix(endpoint.Path, "/") || hasDotSegment(endpoint.EscapedPath()) || endpoint.Path != "" && endpoint.Path[0] != '/' {
			return
		}
		parsed, ok := parseTarget(u, basePath)
		if !ok {
			return
		}
		info, err := resolver.NewRequestInfo(&http.Request{Method: "GET", URL: u})
		if err != nil {
			t.Fatal(err)
		}
		if info.Name != parsed.cluster || info.Subresource != "proxy" {
			return // refused by the handler
		}
		if !strings.HasPrefix(u.Path, basePath+info.Name+"/proxy") {
			t.Errorf("%q: %q was authorized, but the path does not begin with it", uri, info.Name)
		}
		out := parsed.onEndpoint(endpoint, u)
		if out.Host != endpoint.Host || out.Scheme != "https" || out.User != nil {
			t.Errorf("%q goes to %s", uri, out)
		}
		if out.RawQuery != u.RawQuery || out.ForceQuery != u.ForceQuery {
			t.Errorf("%q: the query became %q", uri, out.RawQuery)
		}
		sent := out.RequestURI()
		if !strings.HasPrefix(sent, endpoint.EscapedPath()+"/") {
			t.Errorf("%q: %s is not below %s", uri, sent, endpoint)
		}
		// The path that is sent is the one that was requested.
		rest := strings.TrimPrefix(u.Path, basePath+info.Name+"/proxy")
		if rest == "" {
			rest = "/"
		}
		if out.Path != endpoint.Path+rest {
			t.Errorf("%q: the path became %q", uri, out.Path)
		}
		if !parsed.escapes(endpoint) && endpoint.Path != "" {
			if resolved := (&url.URL{Scheme: "https", Host: "h", Path: "/"}).ResolveReference(&url.URL{Path: out.Path}); !strings.HasPrefix(resolved.Path, endpoint.Path) {
				t.Errorf("%q leads to %s", uri, resolved)
			}
		}
		for _, escaped := range []string{"%2f", "%2F", "%00", "%25"} {
			if strings.Count(u.RequestURI(), "|") == 0 && u.RawPath != "" && strings.Count(u.RawPath, escaped) != strings.Count(out.EscapedPath(), escaped)-strings.Count(endpoint.EscapedPath(), escaped) {
				t.Errorf("%q: %s got lost in %s", uri, escaped, sent)
			}
		}
		_ = newClassifier().classify(&http.Request{Method: "GET", URL: u, Header: http.Header{}}, parsed.onEndpoint(&url.URL{}, u))
	})
}
