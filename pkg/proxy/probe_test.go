// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestProbe(t *testing.T) {
	answer, code := `{"gitVersion":"v1.37.2"}`, 200
	s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, "/below/") || r.Header.Get("Authorization") != "Bearer "+testToken {
			t.Errorf("%s %s", r.URL, r.Header)
		}
		w.WriteHeader(code)
		_, _ = io.WriteString(w, answer)
	})
	g := newGateway(t, nil)
	g.set(s.secret("a", "endpoint", s.URL+"/below"))
	if v, err := g.handler.Version(t.Context(), "a"); v != "v1.37.2" || err != nil {
		t.Errorf("%q, %v", v, err)
	}
	if r, err := g.handler.Ready(t.Context(), "a"); err != nil || r.Latency <= 0 || !r.Certificate.Equal(s.Certificate()) {
		t.Errorf("%+v, %v", r, err)
	}
	for _, test := range []struct {
		code                   int
		answer, ready, version string
		cause                  metav1.CauseType
	}{
		{403, "", "", `cluster "a": GET /version: the API server answered 403 Forbidden`, CauseResponse},
		{401, "", `cluster "a" rejected the gateway's credential (401)`, `cluster "a" rejected the gateway's credential (401)`, CauseCredential},
		{500, "[+]ping ok\n[-]etcd failed: reason withheld\n", `cluster "a": GET /readyz: the API server is not ready: 500 Internal Server Error: [-]etcd failed`, `cluster "a": GET /version: the API server answered 500`, CauseResponse},
		{200, "<html>", "", `cluster "a": GET /version: the answer is not the version of an API server: invalid character`, CauseResponse},
	} {
		code, answer = test.code, test.answer
		_, ready := g.handler.Ready(t.Context(), "a")
		_, version := g.handler.Version(t.Context(), "a")
		for _, c := range []struct {
			err  error
			want string
		}{{ready, test.ready}, {version, test.version}} {
			var probe *ProbeError
			switch {
			case c.want == "" && c.err == nil:
			case !errors.As(c.err, &probe) || !strings.HasPrefix(probe.Error(), c.want) || probe.Cause != test.cause:
				t.Errorf("%d: %v", test.code, c.err)
			case errors.Is(c.err, ErrCredentialRejected) != (test.code == 401):
				t.Errorf("%d: rejected: %v", test.code, c.err)
			}
		}
	}
	if _, err := g.handler.Ready(t.Context(), "b"); err == nil || !strings.Contains(err.Error(), "not found") {
		t.Error(err)
	}
	g.handler.Close()
	if _, err := g.handler.Ready(t.Context(), "a"); err == nil || !strings.Contains(err.Error(), "shutting down") {
		t.Error(err)
	}
}

// A probe's deadline is reported as a timeout of the cluster, not as a client that has left.
func TestProbeDeadline(t *testing.T) {
	release := make(chan struct{})
	s := newAPIServer(t, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	defer close(release)
	g := newGateway(t, nil)
	g.set(s.secret("a"))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := g.handler.Ready(ctx, "a")
	var probe *ProbeError
	if !errors.As(err, &probe) || probe.Status.ErrStatus.Code != http.StatusGatewayTimeout {
		t.Error(err)
	}
}

// What a cluster says must not fill the hub or control a terminal.
func TestProbeMakesTextPrintable(t *testing.T) {
	text, code := "\x1b[2J"+strings.Repeat("x", 60<<10), 200
	s := newAPIServer(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(code)
		if code == 200 {
			_ = json.NewEncoder(w).Encode(map[string]string{"gitVersion": text})
			return
		}
		_, _ = io.WriteString(w, "[-]"+text)
	})
	g := newGateway(t, nil)
	g.set(s.secret("a"))
	check := func(text string) {
		t.Helper()
		if len(text) > 1024 || strings.Contains(text, "\x1b") {
			t.Errorf("%d bytes: %.80q", len(text), text)
		}
	}
	version, err := g.handler.Version(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	check(version)
	code = 500
	_, err = g.handler.Ready(t.Context(), "a")
	if err == nil {
		t.Fatal("the cluster is ready")
	}
	check(err.Error())
}
