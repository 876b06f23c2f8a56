// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/dialer"
	"github.com/oam-dev/cluster-gateway/pkg/dialer/dialertest"
)

// failingDial makes the error of a tunnel with a certain fault.
type failingDial func(ctx context.Context, name, address string) error

func noAgentSince(seen time.Time) failingDial {
	return func(_ context.Context, name, address string) error {
		return &dialer.Error{Cluster: name, Stage: dialer.StageTunnel, Address: address, Err: &dialer.NoAgentError{LastSeen: seen}}
	}
}

func failsAt(stage dialer.Stage, err error) failingDial {
	return func(_ context.Context, name, address string) error {
		return &dialer.Error{Cluster: name, Stage: stage, Address: address, Err: err}
	}
}

func neverAnswersAt(stage dialer.Stage) failingDial {
	return func(ctx context.Context, name, address string) error {
		<-ctx.Done()
		return &dialer.Error{Cluster: name, Stage: stage, Address: address, Err: ctx.Err()}
	}
}

// failure returns an expected Status.
func failure(code int32, reason metav1.StatusReason, name string, cause metav1.CauseType, retry int32, message string) metav1.Status {
	return metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Code: code, Reason: reason, Message: message,
		Details: &metav1.StatusDetails{Group: v1alpha1.GroupName, Kind: "clustergateways", Name: name, RetryAfterSeconds: retry,
			Causes: []metav1.StatusCause{{Type: cause, Message: message}}},
	}
}

// Each failure has its Status, in JSON and in protobuf. The test compares Statuses and headers as a
// whole.
func TestErrors(t *testing.T) {
	silent := make(chan struct{})
	defer close(silent)
	s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/401":
			w.Header().Set("Www-Authenticate", "Basic")
			w.WriteHeader(401)
		case "/silent":
			select {
			case <-silent:
			case <-r.Context().Done():
			}
		case "/breaks":
			panic(http.ErrAbortHandler)
		case "/redirect":
			http.Redirect(w, r, "https://elsewhere.example/", http.StatusFound)
		}
	})
	unreachable, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refusing := unreachable.Addr().String()
	_ = unreachable.Close()
	mute, err := net.Listen("tcp", "127.0.0.1:0") // accepts, in the kernel, and never answers TLS
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	unsolicited := newAPIServer(t, func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\n\r\n")
		_, _ = io.Copy(io.Discard, conn)
	}, onlyHTTP1)
	wrongName := newAPIServer(t, ok)
	// The system's CAs are read when they are first used. That takes time, which must not count for
	// a dial.
	_, _ = s.Certificate().Verify(x509.VerifyOptions{})

	seen := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	tunnels := map[string]failingDial{
		"no-agent":      noAgentSince(seen),
		"no-agent-ever": noAgentSince(time.Time{}),
		"no-server":     failsAt(dialer.StageTunnel, errors.New("connection refused")),
		"agent-died":    failsAt(dialer.StageAgent, errors.New("the agent's connection broke")),
		"agent-silent":  neverAnswersAt(dialer.StageAgent),
		"agent-cannot":  failsAt(dialer.StageEndpoint, errors.New("the agent cannot dial it: connection refused")),
		"wrong-address": failsAt(dialer.StageTunnel, dialer.ErrAddressNotAllowed),
	}
	g := newGateway(t, func(c *Config) {
		direct := c.Dialers
		// Long enough that only the requests that are meant to time out do so.
		c.RequestTimeout, c.DialTimeout = 5*time.Second, 2*time.Second
		c.Dialers = func(c *cluster.Cluster, purpose dialer.Purpose) (dialer.Dialer, error) {
			if c.Route == cluster.RouteDirect {
				return direct(c, purpose)
			}
			return dialer.New(c.Name, func(ctx context.Context, _, address string) (net.Conn, error) {
				return nil, tunnels[c.Name](ctx, c.Name, address)
			}), nil
		}
	})
	g.set(s.secret("good"))
	g.set(s.secret("invalid", "endpoint", "http://x", "token", ""))
	g.set(s.secret("refusing", "endpoint", "https://"+refusing))
	g.set(s.secret("mute", "endpoint", "https://"+mute.Addr().String()))
	g.set(s.secret("wrong-ca", "ca.crt", newCAPEM(t)))
	g.set(s.secret("system-roots", "ca.crt", ""))
	g.set(wrongName.secret("wrong-name", "tls-server-name", "api.example.org"))
	g.set(unsolicited.secret("unsolicited"))
	for name := range tunnels {
		g.set(throughTunnel(s.secret(name, "endpoint", "https://kubernetes.default.svc:443")))
	}

	const (
		unavailable = metav1.StatusReasonServiceUnavailable
		bad         = StatusReasonBadGateway
		timeout     = metav1.StatusReasonTimeout
		api         = "kubernetes.default.svc:443"
	)
	at := strings.TrimPrefix(s.URL, "https://")
	for _, test := range []struct {
		cluster, path string
		want          metav1.Status
	}{
		{"missing", "/", metav1.Status{
			TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Code: 404, Reason: metav1.StatusReasonNotFound,
			Message: `clustergateways.cluster.core.oam.dev "missing" not found`,
			Details: &metav1.StatusDetails{Group: v1alpha1.GroupName, Kind: "clustergateways", Name: "missing"},
		}},
		{"invalid", "/", failure(503, unavailable, "invalid", CauseInvalidSecret, 0,
			`cluster "invalid" cannot be used: its Secret is invalid: endpoint: the scheme is "http"; only https is allowed; token: is missing; it must be a bearer token`)},
		{"no-agent", "/", failure(503, unavailable, "no-agent", CauseTunnel, 1,
			`cluster "no-agent": no agent is connected; the last agent disconnected at 2026-01-02T03:04:05Z; check that the agent runs in the cluster, that it can reach the gateway's tunnel port, and that its certificate is for "no-agent"`)},
		{"no-agent-ever", "/", failure(503, unavailable, "no-agent-ever", CauseTunnel, 1,
			`cluster "no-agent-ever": no agent is connected, and none has been since the gateway started; check that the agent runs in the cluster, that it can reach the gateway's tunnel port, and that its certificate is for "no-agent-ever"`)},
		{"no-server", "/", failure(503, unavailable, "no-server", CauseTunnel, 1, `cluster "no-server": the tunnel cannot be used: connection refused`)},
		{"wrong-address", "/", failure(503, unavailable, "wrong-address", CauseTunnel, 1,
			`cluster "wrong-address": the tunnel cannot be used: the address is not the cluster's registered API server`)},
		{"agent-died", "/", failure(502, bad, "agent-died", CauseAgent, 0,
			`cluster "agent-died": the agent failed to connect to `+api+`: the agent's connection broke`)},
		{"agent-silent", "/", failure(504, timeout, "agent-silent", CauseAgent, 0,
			`cluster "agent-silent": asking the agent to connect to `+api+` timed out: context deadline exceeded`)},
		{"agent-cannot", "/", failure(502, bad, "agent-cannot", CauseEndpoint, 0,
			`cluster "agent-cannot": the API server at `+api+` cannot be reached: the agent cannot dial it: connection refused`)},
		{"refusing", "/", failure(502, bad, "refusing", CauseEndpoint, 0,
			fmt.Sprintf(`cluster "refusing": the API server at %s cannot be reached: dial tcp %s: %v`, refusing, refusing, os.NewSyscallError("connect", syscall.ECONNREFUSED)))},
		{"mute", "/", failure(504, timeout, "mute", CauseTLS, 0,
			`cluster "mute": the TLS handshake with `+mute.Addr().String()+` timed out: context deadline exceeded`)},
		{"wrong-ca", "/", failure(502, bad, "wrong-ca", CauseTLS, 0,
			`cluster "wrong-ca": TLS with the API server at `+at+` failed: expected a certificate signed by a CA in the Secret's ca.crt, but got one for "O=Acme Co" signed by "O=Acme Co"`)},
		{"system-roots", "/", failure(502, bad, "system-roots", CauseTLS, 0,
			`cluster "system-roots": TLS with the API server at `+at+` failed: expected a certificate signed by one of the system's CAs, because the Secret has no ca.crt, but got one for "O=Acme Co" signed by "O=Acme Co"; add the cluster's CA to the Secret as ca.crt`)},
		{"wrong-name", "/", failure(502, bad, "wrong-name", CauseTLS, 0,
			`cluster "wrong-name": TLS with the API server at `+strings.TrimPrefix(wrongName.URL, "https://")+` failed: expected a certificate for "api.example.org", but got one for `+strings.Join(wrongName.Certificate().DNSNames, ", ")+`, 127.0.0.1, ::1; tls-server-name in the Secret sets the expected name`)},
		{"good", "/401", failure(502, bad, "good", CauseCredential, 0,
			`cluster "good" rejected the gateway's credential (401): the ServiceAccountToken in its Secret has expired or been revoked, or belongs to another cluster; this is not about your own credential`)},
		{"good", "/silent", failure(504, timeout, "good", CauseResponse, 0, `cluster "good": its API server's answer took longer than 5s`)},
		{"good", "/redirect", failure(502, bad, "good", CauseResponse, 0,
			`cluster "good" answered with a redirect to another host or path, which the gateway does not pass on`)},
		{"unsolicited", "/", failure(502, bad, "unsolicited", CauseResponse, 0,
			`the answer of cluster "unsolicited" is invalid: it switched to another protocol without being asked to`)},
	} {
		t.Run(test.cluster+test.path, func(t *testing.T) {
			g.t = t
			// Some requests take long, so both are sent at the same time.
			var inProtobuf *http.Response
			var text string
			var second sync.WaitGroup
			second.Go(func() {
				inProtobuf, text = g.get(test.cluster, test.path, "Accept", "application/vnd.kubernetes.protobuf")
			})
			resp, got := g.status(test.cluster, test.path)
			second.Wait()
			diff(t, "Status", test.want, got)
			header := http.Header{"Content-Type": {"application/json"}, "Date": resp.Header["Date"], "Content-Length": resp.Header["Content-Length"]}
			if after := test.want.Details.RetryAfterSeconds; after > 0 {
				header.Set("Retry-After", itoa(int(after)))
			}
			if test.cluster != "missing" && test.cluster != "invalid" {
				header.Set("Cache-Control", "no-cache, private")
			}
			diff(t, "header", header, resp.Header)

			diff(t, "Content-Type", "application/vnd.kubernetes.protobuf", inProtobuf.Header.Get("Content-Type"))
			scheme := runtime.NewScheme()
			metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
			object, _, err := protobuf.NewSerializer(scheme, scheme).Decode([]byte(text), nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			status, isStatus := object.(*metav1.Status)
			if !isStatus {
				t.Fatalf("%T", object)
			}
			status.TypeMeta = test.want.TypeMeta
			if test.want.Details.Name != "" {
				diff(t, "Status in protobuf", test.want, *status)
			}
		})
	}
	t.Run("good/breaks", func(t *testing.T) {
		g.t = t
		_, got := g.status("good", "/breaks")
		if got.Code != 502 || got.Reason != bad || !strings.HasPrefix(got.Message, `the connection to cluster "good" broke before its answer was complete: `) {
			t.Errorf("%+v", got)
		}
	})
	t.Run("a form that is not served", func(t *testing.T) {
		g.t = t
		if resp, text := g.get("missing", "/", "Accept", "text/html"); resp.StatusCode != 404 || !strings.Contains(text, `"NotFound"`) {
			t.Errorf("%s: %s", resp.Status, text)
		}
	})
}

func newCAPEM(t testing.TB) string {
	t.Helper()
	server := httptest.NewUnstartedServer(http.HandlerFunc(ok))
	pair := dialertest.NewCA(t, "another").Server(t)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	server.StartTLS()
	defer server.Close()
	return (&apiServer{Server: server}).ca()
}

// The cluster's own answers are passed on unchanged.
func TestAnswersArePassedOn(t *testing.T) {
	s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		var code int
		_, _ = fmt.Sscanf(r.URL.Path, "/%d", &code)
		w.Header().Set("Retry-After", "7")
		w.Header().Set("X-Of", "cluster")
		w.WriteHeader(code)
		_, _ = io.WriteString(w, "as it is")
	})
	g := newGateway(t, nil)
	g.set(s.secret("a"))
	for _, code := range []int{200, 201, 400, 403, 404, 405, 409, 410, 413, 422, 429, 500, 502, 503, 504} {
		resp, body := g.get("a", "/"+itoa(code))
		wantCode(t, resp, body, code)
		if body != "as it is" || resp.Header.Get("X-Of") != "cluster" || resp.Header.Get("Retry-After") != "7" {
			t.Errorf("%d: %q %v", code, body, resp.Header)
		}
	}
}

// A 401 of an application behind the API server is passed on, and one of the API server is not,
// even if they look the same.
func TestUnauthorizedApplication(t *testing.T) {
	const status = `{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"Unauthorized","reason":"Unauthorized","code":401}`
	var versions atomic.Int64
	version := http.StatusOK
	s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Header.Get("Authorization") != "Bearer "+testToken:
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, status)
		case r.URL.Path == "/below/version":
			versions.Add(1)
			w.WriteHeader(version)
		default:
			w.Header().Set("Www-Authenticate", "Basic")
			w.Header().Set("X-Of", "application")
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, status)
		}
	})
	g := newGateway(t, nil)
	g.set(s.secret("good", "endpoint", s.URL+"/below"))
	g.set(s.secret("expired", "endpoint", s.URL+"/below", "token", "another"))
	applications := []string{"/api/v1/namespaces/n/services/s/proxy/x", "/api/v1/namespaces/n/pods/https:p:1/proxy", "/api/v1/nodes/n/proxy/metrics"}
	for _, path := range applications {
		resp, body := g.get("good", path)
		wantCode(t, resp, body, 401)
		if body != status || resp.Header.Get("X-Of") != "application" {
			t.Errorf("%s: %s %v", path, body, resp.Header)
		}
		// The client would send its answer to the hub.
		if resp.Header.Get("Www-Authenticate") != "" {
			t.Errorf("%s: the challenge is passed on", path)
		}
		resp, body = g.get("expired", path)
		wantCode(t, resp, body, 502)
	}
	resp, body := g.do(http.MethodHead, "good", applications[0], nil)
	wantCode(t, resp, body, 401)
	upgrade, err := http.ReadResponse(bufio.NewReader(g.raw("GET "+basePath+"good/proxy"+applications[0]+" HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")), nil)
	if err != nil || upgrade.StatusCode != 401 {
		t.Errorf("an upgrade: %v, %v", upgrade, err)
	}
	// For other paths, the 401 must be the API server's, and nothing is asked.
	asked := versions.Load()
	for _, path := range []string{"/api/v1/namespaces/n/pods/p/log", "/api/v1/namespaces/n/services/s", "/apis/example.com/v1/namespaces/n/services/s/proxy/x", "/"} {
		resp, body := g.get("good", path)
		wantCode(t, resp, body, 502)
	}
	if n := versions.Load(); n != asked {
		t.Errorf("the API server was asked %d times", n-asked)
	}
	// A failure of the API server does not mean that it accepts the credential.
	version = http.StatusServiceUnavailable
	resp, body = g.get("good", applications[0])
	wantCode(t, resp, body, 502)
}

func TestBrief(t *testing.T) {
	if got := brief(errors.New(strings.Repeat("ä", 10000))); len(got) > 520 || !strings.HasSuffix(got, "…") || !json.Valid([]byte(`"`+got+`"`)) {
		t.Error(len(got))
	}
	if !bytes.Equal([]byte(brief(errors.New("x"))), []byte("x")) {
		t.Error("x")
	}
}
