// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestTooManyRequests(t *testing.T) {
	release, entered := make(chan struct{}), make(chan struct{}, 10)
	s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		if r.URL.Path == "/wait" {
			<-release
		}
	})
	g := newGateway(t, func(c *Config) { c.MaxInFlight = 2 })
	g.set(s.secret("busy"))
	g.set(s.secret("idle"))
	done := make(chan struct{}, 2)
	for range 2 {
		go func() { defer func() { done <- struct{}{} }(); g.get("busy", "/wait") }()
		<-entered
	}
	resp, got := g.status("busy", "/")
	diff(t, "Status", failure(429, metav1.StatusReasonTooManyRequests, "busy", CauseRequest, 1,
		`cluster "busy" already has 2 requests in flight through this gateway, which is the limit; try again later`), got)
	diff(t, "Retry-After", "1", resp.Header.Get("Retry-After"))
	// Neither watches nor other clusters are in the way of, or stopped by, the limit.
	for _, at := range [][2]string{{"idle", "/"}, {"busy", "/api/v1/pods?watch=1"}} {
		resp, body := g.get(at[0], at[1])
		wantCode(t, resp, body, 200)
		<-entered
	}
	close(release)
	<-done
	<-done
	eventually(t, "the limit is not reached any more", func() bool {
		resp, _ := g.get("busy", "/")
		return resp.StatusCode == 200
	})
	if m := g.metrics(); !strings.Contains(m, "requests_total{cluster=busy,code=429,route=direct,verb=get} 1\n") {
		t.Error(m)
	}
}

func TestTooManyStreams(t *testing.T) {
	entered := make(chan struct{}, 10)
	s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		entered <- struct{}{}
		if r.URL.Query().Has("hold") {
			<-r.Context().Done()
		}
	})
	g := newGateway(t, func(c *Config) { c.MaxStreams = 2 })
	g.set(s.secret("busy"))
	g.set(s.secret("idle"))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for _, path := range []string{"/api/v1/pods?watch=1&hold", "/api/v1/namespaces/a/pods/b/log?follow=true&hold"} {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, g.url("busy", path), nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := g.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		<-entered
	}
	const message = `cluster "busy" already has 2 long-running requests (such as watches, logs, exec, attach and port-forward) through this gateway, which is the limit; try again later`
	resp, got := g.status("busy", "/api/v1/pods?watch=1")
	diff(t, "Status of a watch", failure(429, metav1.StatusReasonTooManyRequests, "busy", CauseRequest, 1, message), got)
	diff(t, "Retry-After", "1", resp.Header.Get("Retry-After"))
	upgrade, err := http.ReadResponse(bufio.NewReader(g.raw("GET "+basePath+"busy/proxy/api/v1/namespaces/a/pods/b/exec HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")), nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(io.LimitReader(upgrade.Body, upgrade.ContentLength))
	if err != nil {
		t.Fatal(err)
	}
	wantCode(t, upgrade, string(body), 429)
	// Neither ordinary requests nor other clusters are in the way of, or stopped by, the limit.
	for _, at := range [][2]string{{"busy", "/"}, {"idle", "/api/v1/pods?watch=1"}} {
		resp, body := g.get(at[0], at[1])
		wantCode(t, resp, body, 200)
		<-entered
	}
	cancel()
	eventually(t, "the limit is not reached any more", func() bool {
		resp, _ := g.get("busy", "/api/v1/pods?watch=1")
		return resp.StatusCode == 200
	})
}
