// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// TestHostileClusterCannotRedirect repeats published faults in which a proxy, or its client,
// followed a redirect of a hostile backend to another host, with a credential.
func TestHostileClusterCannotRedirect(t *testing.T) {
	t.Parallel()
	elsewhere := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		t.Errorf("%s %s with %q reached another host", r.Method, r.URL, r.Header)
		ok(w, r)
	})
	hostile := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		code, err := strconv.Atoi(r.URL.Query().Get("code"))
		if err != nil {
			t.Error(err)
		}
		w.Header().Set("Location", elsewhere.URL+r.URL.Path)
		w.WriteHeader(code)
	})
	codes := []string{"301", "302", "303", "307", "308"}
	g := newGateway(t, nil)
	g.set(hostile.secret("a"))
	// kubernetes/kubernetes#92914: redirects of upgrades were followed with the proxy's credential.
	t.Run("CVE-2020-8559", func(t *testing.T) {
		for _, code := range codes {
			_, br, resp := g.upgrade("a", "/api/v1/namespaces/n/pods/p/exec?code="+code)
			body, _ := io.ReadAll(io.LimitReader(br, 1))
			if resp.StatusCode != http.StatusBadGateway || resp.Header.Get("Location") != "" {
				t.Errorf("%s: %s %v %q", code, resp.Status, resp.Header, body)
			}
		}
	})
	// kubernetes/kubernetes#112513: clients were redirected by an aggregated API server, and sent
	// their credential along.
	t.Run("CVE-2022-3172", func(t *testing.T) {
		for _, code := range codes {
			for _, header := range [][]string{nil, {throughHubHeader, "1"}} {
				resp, body := g.get("a", "/api/v1/pods?code="+code, header...)
				if resp.StatusCode != http.StatusBadGateway || resp.Header.Get("Location") != "" {
					t.Errorf("%s: %s %v %q", code, resp.Status, resp.Header, body)
				}
			}
		}
	})
}

// TestConnectionHeaderRemovesNothing (CVE-2021-31999): headers that the caller names in Connection
// are removed before the gateway sets its own, so the cluster sees the caller and not the gateway's
// account.
func TestConnectionHeaderRemovesNothing(t *testing.T) {
	t.Parallel()
	received := make(chan http.Header, 1)
	s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) { received <- r.Header.Clone(); ok(w, r) })
	g := newGateway(t, nil)
	secret := s.secret("a")
	secret.Annotations[v1alpha1.AnnotationIdentity] = "impersonate"
	g.set(secret)
	for _, names := range []string{"close", "close, Impersonate-User", "close, impersonate-user, IMPERSONATE-GROUP, Authorization, Impersonate-Uid"} {
		conn := g.raw("GET " + basePath + "a/proxy/api/v1/pods HTTP/1.1\r\nHost: x\r\n" + userHeader + ": jane\r\nConnection: " + names + "\r\nImpersonate-User: admin\r\n\r\n")
		if answer, err := io.ReadAll(conn); err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 200") {
			t.Fatalf("%s: %v", answer, err)
		}
		h := <-received
		if got := h["Impersonate-User"]; len(got) != 1 || got[0] != "jane" || h.Get("Authorization") != "Bearer "+testToken {
			t.Errorf("Connection: %s: the cluster got %v", names, h)
		}
	}
}
