// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/oam-dev/cluster-gateway/test/lab"
)

// TestEndpointWithPathPrefix runs the matrix against an API server that is not at the root of its
// host.
func TestEndpointWithPathPrefix(t *testing.T) {
	const prefix = "/tenants/one%2Ftwo"
	cases := []string{
		"get", "get -w", "apply --server-side", "logs -f", "exec over WebSocket", "exec over SPDY", "port-forward over WebSocket",
		"api-resources", "explain", "top-level paths", "chunked list", "odd queries",
	}
	g := shared.embedded
	f := newFront(t, shared.direct, shared.direct.CA(), prefix)
	register(bounded(t, caseTimeout), t, shared.embeddedHub, lab.SecretOptions{Name: "prefixed", Data: map[string][]byte{
		"endpoint": []byte(f.url), "ca.crt": shared.direct.CAPEM(), "token": token(t, shared.direct, "cluster-gateway"),
	}})
	for _, door := range doors() {
		t.Run(string(door), func(t *testing.T) {
			waitKnown(t, g, "prefixed")
			s := newSite(t, route{"prefixed/" + string(door), "prefixed", g, shared.direct, door})
			for _, c := range matrix() {
				if slices.Contains(cases, c.name) {
					t.Run(c.name, func(t *testing.T) { c.run(bounded(t, caseTimeout), t, s) })
				}
			}
			t.Run("no request without the prefix", func(t *testing.T) {
				requests := f.seen()
				if len(requests) < len(cases) {
					t.Errorf("only %d requests were received", len(requests))
				}
				for _, uri := range requests {
					if !strings.HasPrefix(uri, prefix+"/") || strings.Contains(uri[len(prefix):], prefix) {
						t.Errorf("the cluster received %s", uri)
					}
				}
			})
			t.Run("unchanged", func(t *testing.T) { testToTheLetter(bounded(t, caseTimeout), t, s, f, prefix) })
		})
	}
}

// testToTheLetter compares the request that the cluster receives with the request that was sent.
func testToTheLetter(ctx context.Context, t *testing.T, s *site, f *front, prefix string) {
	uris := []string{"/version", "/version?a=b&c=d%2Fe", "/trailing/"}
	if s.door == lab.ViaOwnEndpoint {
		// The hub's aggregation layer unescapes paths and drops invalid parts of queries before the
		// gateway sees them (kube-aggregator, handler_proxy.go).
		uris = append(uris,
			"/version?a=%zz&b", "/version?a;b", "/version?&&=&", "/version?%", "/version?a+b=%2B%20",
			"/a%2Fb", "/a%2fb?c=d%2fe", "/%252F", "/a%20b%3Fc%23d", "//double", "/:;@!$'(),*~")
	}
	f.seen()
	for _, uri := range uris {
		ask(ctx, t, s.config, http.MethodGet, uri)
		if got, want := f.seen(), []string{prefix + uri}; !slices.Equal(got, want) {
			t.Errorf("requested %s, the cluster received %q, want %q", uri, got, want)
		}
	}
	// A path that could leave the prefix is not sent at all.
	for _, uri := range []string{"/%2E%2E/version", "/a/%2e%2e/%2e%2e/version"} {
		r := ask(ctx, t, s.config, http.MethodGet, uri)
		if got := f.seen(); r.code < 300 || len(got) > 0 {
			t.Errorf("requested %s, the cluster received %q: %+v", uri, got, r)
		}
	}
}
