// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// answers is a managed API server that answers every request with the same bytes.
func answers(t *testing.T, text string) *apiServer {
	t.Helper()
	return newAPIServer(t, func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = io.WriteString(conn, text)
		_ = conn.Close()
	}, onlyHTTP1)
}

// An invalid status code is not passed on: net/http would panic.
func TestImpossibleStatusCodes(t *testing.T) {
	g := newGateway(t, nil)
	for _, code := range []string{"000", "001", "099"} {
		name := "a" + code
		g.set(answers(t, "HTTP/1.1 "+code+" Odd\r\nContent-Length: 0\r\n\r\n").secret(name))
		resp, status := g.status(name, "/")
		if resp.StatusCode != http.StatusBadGateway || status.Details == nil || status.Details.Causes[0].Type != CauseResponse {
			t.Errorf("%s: %+v", code, status)
		}
	}
}

// A flood of interim answers is limited, and so is an endless header.
func TestFloodsBeforeAnswer(t *testing.T) {
	g := newGateway(t, nil)
	for name, text := range map[string]string{
		"interim":   strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", 10_000),
		"header":    "HTTP/1.1 200 OK\r\nA: " + strings.Repeat("x", maxResponseHeader+64<<10) + "\r\n\r\n",
		"headers":   "HTTP/1.1 200 OK\r\n" + strings.Repeat("A: x\r\n", maxResponseHeader/3) + "\r\n",
		"not http":  strings.Repeat("\x00", 1<<20),
		"smuggling": "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
	} {
		n := strings.ReplaceAll(name, " ", "-")
		g.set(answers(t, text).secret(n))
		if resp, status := g.status(n, "/"); resp.StatusCode != http.StatusBadGateway || len(status.Message) > 2048 {
			t.Errorf("%s: %d, a message of %d bytes", name, resp.StatusCode, len(status.Message))
		}
	}
}

// The same over HTTP/2, where all other requests share the connection.
func TestHugeHeaderOverHTTP2(t *testing.T) {
	s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/huge" {
			for i := range 40 {
				w.Header().Set(fmt.Sprintf("X-%d", i), strings.Repeat("x", maxResponseHeader/20))
			}
		}
	})
	g := newGateway(t, nil)
	g.set(s.secret("a"))
	if resp, _ := g.status("a", "/huge"); resp.StatusCode != http.StatusBadGateway {
		t.Errorf("got %d", resp.StatusCode)
	}
	resp, body := g.get("a", "/")
	wantCode(t, resp, body, http.StatusOK)
}

// However much a cluster sends to clients that do not read, the gateway holds a limited amount for
// each.
func TestStalledClientsHoldLittle(t *testing.T) {
	const clients, each = 16, receiveWindow + 1<<20
	sent := make(chan int64, clients)
	s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/" {
			return
		}
		var n int64
		defer func() { sent <- n }()
		_, _ = io.Copy(writer(func(p []byte) (int, error) {
			k, err := w.Write(p)
			n += int64(k)
			return k, err
		}), &zeros{1 << 40})
	})
	g := newGateway(t, nil)
	g.set(s.secret("a"))
	ctx, cancel := context.WithCancel(t.Context())
	for range clients {
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, g.url("a", "/endless"), nil)
		resp, err := g.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
	}
	for range 50 {
		g.get("a", "/")
	}
	cancel()
	for range clients {
		if n := <-sent; n > 4<<20+each { // the client of this test has a window of 4 MiB of its own
			t.Errorf("%d bytes were held for a client that does not read", n)
		}
	}
}

type writer func(p []byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

// A path that was authorized for one cluster never reaches another, however it is written.
func TestPathTricks(t *testing.T) {
	reached := make(chan string, 100)
	b := newAPIServer(t, func(_ http.ResponseWriter, r *http.Request) { reached <- r.RequestURI })
	a := newAPIServer(t, ok)
	g := newGateway(t, nil)
	g.set(a.secret("a"))
	g.set(b.secret("b"))
	for _, path := range []string{
		"a/proxy/../../b/proxy/x", "a/proxy/..%2f..%2fb/proxy/x", "a/proxy/%2e%2e/%2e%2e/b/proxy/x", "a%2f..%2fb/proxy/x", "a/../b/proxy/x",
		"a//b/proxy/x", "./b/proxy/x", "a/proxy//b/x", `a/proxy\..\..\b\proxy`, "a;b/proxy/x", "a%00b/proxy/x", "%61/../b/proxy/x",
	} {
		conn := g.raw("GET " + basePath + path + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		if _, err := io.ReadAll(conn); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	// With headers that override the request line on some servers.
	for _, name := range []string{"X-Original-Url", "X-Rewrite-Url", "X-Http-Method-Override", "X-Forwarded-Prefix", "Host"} {
		g.get("a", "/", name, "/apis/"+v1alpha1.GroupName+"/v1alpha1/clustergateways/b/proxy/x")
	}
	select {
	case uri := <-reached:
		t.Errorf("cluster b got a request for %s", uri)
	default:
	}
}
