// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"context"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"k8s.io/apiserver/pkg/audit"
)

// secretOfCaller is part of everything that a caller sends and that a cluster must not see.
const secretOfCaller = "secret-of-the-caller"

// hostileHeaders identify the caller in every known way.
const hostileHeaders = "Authorization: Bearer " + secretOfCaller + "\r\n" +
	"aUTHORIZATION: Basic " + secretOfCaller + "\r\n" +
	"Proxy-Authorization: Basic " + secretOfCaller + "\r\n" +
	"cookie: a=" + secretOfCaller + "\r\nCookie: b=" + secretOfCaller + "\r\n" +
	"x-remote-user: " + secretOfCaller + "\r\nX-REMOTE-USER: " + secretOfCaller + "\r\n" +
	"X-Remote-Group: system:masters\r\nX-Remote-Group: " + secretOfCaller + "\r\n" +
	"X-Remote-Uid: " + secretOfCaller + "\r\nX-Remote-Extra-Scopes%2fA: " + secretOfCaller + "\r\nX-Remote-Anything: " + secretOfCaller + "\r\n" +
	"impersonate-user: " + secretOfCaller + "\r\nImpersonate-Group: system:masters\r\nIMPERSONATE-GROUP: " + secretOfCaller + "\r\n" +
	"Impersonate-Uid: " + secretOfCaller + "\r\nImpersonate-Extra-X: " + secretOfCaller + "\r\nImpersonate-: " + secretOfCaller + "\r\n" +
	"X-Forwarded-For: " + secretOfCaller + "\r\nx-forwarded-uri: " + secretOfCaller + "\r\nX-Forwarded-Client-Cert: " + secretOfCaller + "\r\n" +
	"Forwarded: for=" + secretOfCaller + "\r\nX-Real-IP: " + secretOfCaller + "\r\n" +
	"Keep-Alive: timeout=5\r\nTE: trailers\r\nProxy-Connection: keep-alive\r\nX-Hop: " + secretOfCaller + "\r\n"

// The caller's identity and credentials never reach a cluster. The test compares whole header maps,
// so that no unknown header gets through either.
func TestCallersHeadersNeverArrive(t *testing.T) {
	received := make(chan http.Header, 1)
	s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		h := r.Header.Clone()
		for name, values := range r.Trailer {
			h["Trailer: "+name] = values
		}
		received <- h
		if up := r.Header.Get("Upgrade"); up != "" {
			w.Header().Set("Connection", "Upgrade")
			w.Header().Set("Upgrade", up)
			w.WriteHeader(http.StatusSwitchingProtocols)
		}
	})
	g := newGateway(t, nil)
	g.set(s.secret("a"))
	plain := http.Header{
		"Accept": {"application/json, */*"}, "Accept-Encoding": {"gzip"}, "User-Agent": {"kubectl/v1"}, "X-Custom": {"one", "two"},
		"Kubectl-Command": {"kubectl get"}, "Te": {"trailers"}, "Authorization": {"Bearer " + testToken},
	}
	with := func(more http.Header, less ...string) http.Header {
		h := plain.Clone()
		maps.Copy(h, more)
		for _, name := range less {
			delete(h, name)
		}
		return h
	}
	const rest = "Accept: application/json, */*\r\nAccept-Encoding: gzip\r\nUser-Agent: kubectl/v1\r\nX-Custom: one\r\nx-custom: two\r\nKubectl-Command: kubectl get\r\n"
	for name, test := range map[string]struct {
		request string
		want    http.Header
	}{
		"get":                                {"GET %/api/v1/namespaces HTTP/1.1\r\nConnection: close, X-Hop\r\n", plain},
		"watch":                              {"GET %/api/v1/namespaces?watch=1 HTTP/1.1\r\nConnection: close, X-Hop\r\n", plain},
		"get without a User-Agent":           {"GET %/ HTTP/1.1\r\nConnection: close, X-Hop, User-Agent\r\n", with(nil, "User-Agent")},
		"the credential is named hop-by-hop": {"GET %/ HTTP/1.1\r\nConnection: close, X-Hop, Authorization\r\n", plain},
		"trailers": {"POST %/x HTTP/1.1\r\nConnection: close, X-Hop\r\nTransfer-Encoding: chunked\r\nTrailer: X-Remote-User, Impersonate-User\r\n",
			plain},
		"websocket": {"GET %/api/v1/namespaces/n/pods/p/exec HTTP/1.1\r\nConnection: Upgrade, X-Hop\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n" +
			"Sec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io." + secretOfCaller + ", v5.channel.k8s.io\r\n" +
			"Sec-Websocket-Protocol: BASE64url.bearer.authorization.k8s.io." + secretOfCaller + ",v4.channel.k8s.io\r\n",
			with(http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"13"},
				"Sec-Websocket-Protocol": {"v5.channel.k8s.io, v4.channel.k8s.io"}})},
		"spdy": {"POST %/api/v1/namespaces/n/pods/p/exec HTTP/1.1\r\nConnection: Upgrade, X-Hop\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\nContent-Length: 0\r\n",
			with(http.Header{"Connection": {"Upgrade"}, "Upgrade": {"SPDY/3.1"}, "X-Stream-Protocol-Version": {"v4.channel.k8s.io"}, "Content-Length": {"0"}})},
		"websocket with nothing but a token": {"GET %/ HTTP/1.1\r\nConnection: Upgrade, X-Hop\r\nUpgrade: websocket\r\n" +
			"Sec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io." + secretOfCaller + "\r\n",
			with(http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}})},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(test.request, "%", basePath+"a/proxy", 1) + "Host: gateway\r\n" + hostileHeaders + rest + "\r\n"
			if strings.Contains(text, "chunked") {
				text += "1\r\nx\r\n0\r\nX-Remote-User: " + secretOfCaller + "\r\nImpersonate-User: " + secretOfCaller + "\r\n\r\n"
			}
			conn := g.raw(text)
			got := <-received
			if _, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil {
				t.Fatal(err)
			}
			_ = conn.Close()
			diff(t, "header", test.want, got)
			for name, values := range got {
				if strings.Contains(strings.Join(append(values, name), " "), secretOfCaller) {
					t.Errorf("%s: %s arrived", name, values)
				}
			}
		})
	}
}

// A handler in front of this one may have set names that are not canonical.
func TestStripRequestIgnoresCase(t *testing.T) {
	h := http.Header{"x-remote-user": {"a"}, "IMPERSONATE-User": {"b"}, "X-FORWARDED-for": {"c"}, "Accept": {"d"}}
	stripRequest(h)
	diff(t, "header", http.Header{"Accept": {"d"}}, h)
}

func TestResponseHeaders(t *testing.T) {
	s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor == 1 {
			w.Header().Set("Connection", "X-Hop")
			w.Header().Set("Keep-Alive", "timeout=1")
		}
		for name, value := range map[string]string{
			"Set-Cookie": "a=b", "Alt-Svc": `h2="elsewhere:443"`, "Strict-Transport-Security": "max-age=1", "Audit-Id": "of-the-cluster",
			"Clear-Site-Data": "*", "Date": "Thu, 01 Jan 1970 00:00:00 GMT", "Content-Type": "application/json", "Cache-Control": "max-age=1",
			"Warning": `299 - "deprecated"`, "X-Kubernetes-Pf-Flowschema-Uid": "f", "Etag": `"1"`, "Trailer": "X-After",
		} {
			w.Header().Set(name, value)
		}
		w.Header().Add("Warning", `299 - "two"`)
		w.Header().Add("Set-Cookie", "c=d")
		w.Header().Set("Link", "</x>")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Del("Link")
		_, _ = io.WriteString(w, "{}")
		w.Header().Set("X-After", "done")
	})
	old := newAPIServer(t, s.Config.Handler.ServeHTTP, onlyHTTP1)
	g := newGateway(t, nil)
	g.set(s.secret("h2"))
	g.set(old.secret("h1"))
	for _, name := range []string{"h2", "h1"} {
		resp, _ := g.get(name, "/api")
		want := http.Header{
			"Date": {"Thu, 01 Jan 1970 00:00:00 GMT"}, "Content-Type": {"application/json"}, "Cache-Control": {"max-age=1"},
			"Warning": {`299 - "deprecated"`, `299 - "two"`}, "X-Kubernetes-Pf-Flowschema-Uid": {"f"}, "Etag": {`"1"`},
		}
		resp.Header.Del("Content-Length") // the cluster's HTTP/2 server adds it
		diff(t, name+": header", want, resp.Header)
		diff(t, name+": trailer", http.Header{"X-After": {"done"}}, resp.Trailer)
	}
}

// The headers of an interim answer would not be stripped, so it is not passed on.
func TestInterimAnswersAreDropped(t *testing.T) {
	s := newAPIServer(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Set-Cookie", "a=b")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Del("Set-Cookie")
		ok(w, nil)
	})
	g := newGateway(t, nil)
	g.set(s.secret("a"))
	conn := g.raw("GET " + basePath + "a/proxy/ HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n")
	text, err := io.ReadAll(conn)
	if err != nil || !strings.HasPrefix(string(text), "HTTP/1.1 200") || strings.Contains(string(text), "Cookie") {
		t.Errorf("%v: %s", err, text)
	}
}

func TestExpectContinue(t *testing.T) {
	s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
	g := newGateway(t, nil)
	g.set(s.secret("a"))
	conn := g.raw("POST " + basePath + "a/proxy/x HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
	br := bufio.NewReader(conn)
	if line, err := br.ReadString('\n'); err != nil || !strings.Contains(line, "100 Continue") {
		t.Fatalf("%q, %v", line, err)
	}
	if _, err := io.WriteString(conn, "body"); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(br); err != nil || !strings.HasSuffix(string(rest), "body") {
		t.Errorf("%q, %v", rest, err)
	}
}

// The audit logs of the gateway and of the cluster use the same ID for a request, and the caller
// gets that ID once.
func TestAuditID(t *testing.T) {
	received := make(chan string, 1)
	s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		received <- strings.Join(r.Header["Audit-Id"], ",")
		w.Header().Set("Audit-ID", "another")
	})
	g := newGateway(t, nil)
	g.set(s.secret("a"))
	inner := g.server.Config.Handler
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := audit.WithAuditContext(r.Context())
		audit.WithAuditID(ctx, "the-one")
		w.Header().Set("Audit-ID", "the-one")
		inner.ServeHTTP(w, r.WithContext(ctx))
	}))
	defer front.Close()
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, front.URL+basePath+"a/proxy/", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := front.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	diff(t, "at the cluster", "the-one", <-received)
	diff(t, "to the caller", []string{"the-one"}, resp.Header["Audit-Id"])
}
