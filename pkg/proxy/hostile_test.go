// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/dialer/dialertest"
	"github.com/oam-dev/cluster-gateway/pkg/internal/memory"
)

// outcome is what callers of a hostile API server get: a Status of the gateway, or an answer that
// breaks off.
type outcome struct {
	code  int
	cause metav1.CauseType
}

var (
	badAnswer  = outcome{code: http.StatusBadGateway, cause: CauseResponse}
	lateAnswer = outcome{code: http.StatusGatewayTimeout, cause: CauseResponse}
	cutAnswer  = outcome{code: codeAborted}
	badTLS     = outcome{code: http.StatusBadGateway, cause: CauseTLS}
	lateTLS    = outcome{code: http.StatusGatewayTimeout, cause: CauseTLS}
)

// A hostile API server harms nobody. Its callers get an error that names the cluster and what it
// did wrong. Others do not notice. The gateway's memory stays within bounds, and nothing is left
// behind.
func TestHostileAPIServers(t *testing.T) {
	budget := memory.NewBudget(256 << 20)
	withTimeout := func(timeout time.Duration) *gateway {
		g := newGateway(t, func(c *Config) {
			c.RequestTimeout, c.DialTimeout, c.Memory = timeout, timeout/2, budget
		})
		g.set(newAPIServer(t, ok).secret("good"))
		g.get("good", "/")
		return g
	}
	// What should end by itself has time for it, also on a busy machine.
	hasty, patient := withTimeout(8*time.Second), withTimeout(time.Minute)
	attacks := map[string]struct {
		server *apiServer
		want   []outcome
	}{
		"endless header":      {http1Server(t, repeats("HTTP/1.1 200 OK\r\nA: ", strings.Repeat("x", 16<<10))), []outcome{badAnswer}},
		"endless headers":     {http1Server(t, repeats("HTTP/1.1 200 OK\r\n", strings.Repeat("A: x\r\n", 1<<10))), []outcome{badAnswer}},
		"endless interim":     {http1Server(t, repeats("", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")), []outcome{badAnswer}},
		"dripping interim":    {http1Server(t, drips("", "HTTP/1.1 102 Processing\r\n\r\n")), []outcome{badAnswer, lateAnswer}},
		"dripping header":     {http1Server(t, drips("HTTP/1.1 200 OK\r\nA: ", "x")), []outcome{lateAnswer}},
		"dripping body":       {http1Server(t, drips("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", "x")), []outcome{cutAnswer}},
		"dripping chunks":     {http1Server(t, drips("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "1\r\nx\r\n")), []outcome{cutAnswer}},
		"promises too much":   {http1Server(t, writes("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nshort")), []outcome{cutAnswer}},
		"negative length":     {http1Server(t, writes("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nx")), []outcome{badAnswer}},
		"two lengths":         {http1Server(t, writes("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab")), []outcome{badAnswer}},
		"malformed chunk":     {http1Server(t, writes("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\nno chunk\r\n")), []outcome{cutAnswer}},
		"endless extension":   {http1Server(t, repeats("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;a=", strings.Repeat("x", 16<<10))), []outcome{cutAnswer}},
		"costly chunks":       {http1Server(t, repeats("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "1;"+strings.Repeat("x", 3000)+"\r\nx\r\n")), []outcome{cutAnswer}},
		"endless trailer":     {http1Server(t, repeats("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: A\r\n\r\n1\r\nx\r\n0\r\n", strings.Repeat("A: x\r\n", 1<<10))), []outcome{cutAnswer}},
		"garbage":             {http1Server(t, repeats("", strings.Repeat("\x00", 16<<10))), []outcome{badAnswer}},
		"switch unasked":      {http1Server(t, holds("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: test\r\n\r\n")), []outcome{badAnswer}},
		"silence":             {http1Server(t, holds("")), []outcome{lateAnswer}},
		"status 000":          {http1Server(t, writes("HTTP/1.1 000 Odd\r\nContent-Length: 0\r\n\r\n")), []outcome{badAnswer}},
		"status 099":          {http1Server(t, writes("HTTP/1.1 099 Odd\r\nContent-Length: 0\r\n\r\n")), []outcome{badAnswer}},
		"silence before TLS":  {beforeTLS(t, holds("")), []outcome{lateTLS}},
		"dripping TLS":        {beforeTLS(t, drips("\x16\x03\x03\x40\x00", "\x02")), []outcome{lateTLS}},
		"no TLS":              {beforeTLS(t, repeats("", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")), []outcome{badTLS}},
		"endless TLS message": {beforeTLS(t, repeats("", "\x16\x03\x03\x40\x00\x02\xff\xff\xff"+strings.Repeat("x", 16<<10-4))), []outcome{badTLS}},
		"another protocol":    {speaks(t, "spdy/3"), []outcome{badTLS}},
		"HTTP/1.1 as HTTP/2":  {confusesProtocols(t), []outcome{badAnswer}},
		"CONTINUATION flood":  {http2Server(t, true, endlessContinuations("\x00\x01a\x7f\x80\x7f"+strings.Repeat("x", 16<<10-127))), []outcome{badAnswer}},
		"empty CONTINUATION":  {http2Server(t, true, endlessContinuations("")), []outcome{badAnswer, lateAnswer}},
		"HPACK bomb":          {http2Server(t, true, decompressionBomb), []outcome{badAnswer}},
		"SETTINGS flood":      {http2Server(t, true, floodsSettings), []outcome{badAnswer, lateAnswer}},
		"unread SETTINGS":     {http2Server(t, false, floodsSettings), []outcome{badAnswer, lateAnswer}},
		"PING flood":          {http2Server(t, true, floodsPings), []outcome{badAnswer, lateAnswer}},
		"unread PINGs":        {http2Server(t, false, floodsPings), []outcome{badAnswer, lateAnswer}},
		"RST_STREAM":          {http2Server(t, true, resetsStream), []outcome{badAnswer, lateAnswer}},
		"RST_STREAM flood":    {http2Server(t, true, floodsResets), []outcome{badAnswer, lateAnswer}},
		"PUSH_PROMISE":        {http2Server(t, true, pushes), []outcome{badAnswer}},
		"window overflow":     {http2Server(t, true, overflowsWindow), []outcome{badAnswer}},
		"window ignored":      {http2Server(t, true, ignoresWindow), []outcome{cutAnswer, badAnswer, lateAnswer}},
		"dripping DATA":       {http2Server(t, true, dripsData), []outcome{cutAnswer, lateAnswer}},
		"huge frame":          {http2Server(t, true, hugeFrame), []outcome{badAnswer}},
	}
	goroutines := runtime.NumGoroutine()
	stops := []func() uint64{hasty.askOthers("good"), patient.askOthers("good")}
	var unregister []func()
	var callers sync.WaitGroup
	for name, attack := range attacks {
		g := hasty
		if !slices.ContainsFunc(attack.want, func(o outcome) bool { return o != badAnswer && o != badTLS }) {
			g = patient
		}
		cluster := fmt.Sprintf("bad-%d", len(unregister))
		g.set(attack.server.secret(cluster))
		unregister = append(unregister, func() { g.delete(cluster) })
		for range 4 {
			callers.Go(func() {
				resp, err := g.client.Get(g.url(cluster, "/api/v1/pods"))
				if fault := faultOf(cluster, resp, err, attack.want); fault != "" {
					t.Errorf("%s: %s", name, fault)
				}
			})
		}
	}
	callers.Wait()
	for _, stop := range stops {
		if peak := stop(); peak > 96<<20 {
			t.Errorf("%d MiB of memory were in use", peak>>20)
		}
	}
	for _, f := range unregister {
		f()
	}
	eventually(t, "all memory is given back", func() bool { return usedMemory(t, budget) == 0 })
	eventually(t, "all goroutines end", func() bool { return runtime.NumGoroutine() <= goroutines+10 })
}

// faultOf returns what is wrong with the answer of a hostile cluster, which must be one of want. It
// closes the answer.
func faultOf(cluster string, resp *http.Response, err error, want []outcome) string {
	got, message := outcome{code: codeAborted}, ""
	if err == nil {
		defer resp.Body.Close()
		var body []byte
		if body, err = io.ReadAll(resp.Body); err == nil {
			var s metav1.Status
			if err := json.Unmarshal(body, &s); err != nil || s.Details == nil || len(s.Details.Causes) == 0 {
				return fmt.Sprintf("%d %.200q is not a Status: %v", resp.StatusCode, body, err)
			}
			got, message = outcome{resp.StatusCode, s.Details.Causes[0].Type}, s.Message
			if !strings.Contains(message, fmt.Sprintf("cluster %q", cluster)) || len(message) > 1024 {
				return fmt.Sprintf("the message does not name the cluster briefly: %.2000s", message)
			}
		}
	}
	if !slices.Contains(want, got) {
		return fmt.Sprintf("got %+v, want one of %+v: %.300s", got, want, message)
	}
	return ""
}

// askOthers sends requests to a cluster until stop is called, each of which must succeed. stop
// returns how many bytes of memory were in use at most.
func (g *gateway) askOthers(cluster string) (stop func() (peak uint64)) {
	return dialertest.DuringAttack(func() {
		if resp, body := g.get(cluster, "/"); resp.StatusCode != http.StatusOK || body != "ok" {
			g.t.Errorf("a cluster that is not hostile: %s %s", resp.Status, body)
		}
	})
}

// A huge header over HTTP/2 does not harm the other requests, which share the connection.
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

// A hostile answer to an upgrade is an error that names the cluster. An upgraded connection that
// never ends, or that carries garbage, ends with its client, and leaves nothing behind.
func TestHostileUpgrades(t *testing.T) {
	const accepted = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: test\r\n\r\n"
	budget := memory.NewBudget(256 << 20)
	g := newGateway(t, func(c *Config) { c.RequestTimeout, c.Memory = 8*time.Second, budget })
	g.set(newAPIServer(t, ok).secret("good"))
	stop := g.askOthers("good")
	attacks := map[string]struct {
		talk func(net.Conn)
		want []outcome // nil if the upgrade succeeds
	}{
		"another protocol":   {holds(strings.Replace(accepted, "test", "other", 1)), []outcome{badAnswer}},
		"no protocol":        {holds("HTTP/1.1 101 Switching Protocols\r\n\r\n"), []outcome{badAnswer}},
		"endless header":     {repeats("HTTP/1.1 101 Switching Protocols\r\nA: ", strings.Repeat("x", 16<<10)), []outcome{badAnswer}},
		"endless interim":    {repeats("", "HTTP/1.1 100 Continue\r\n\r\n"), []outcome{badAnswer}},
		"dripping header":    {drips("HTTP/1.1 101 Switching Protocols\r\nA: ", "x"), []outcome{lateAnswer}},
		"silence":            {holds(""), []outcome{lateAnswer}},
		"garbage":            {repeats("", strings.Repeat("\x00", 16<<10)), []outcome{badAnswer}},
		"garbage afterwards": {repeats(accepted, strings.Repeat("\xff", 16<<10)), nil},
		"silence afterwards": {holds(accepted), nil},
		"drips afterwards":   {drips(accepted, "x"), nil},
	}
	var callers sync.WaitGroup
	for name, a := range attacks {
		cluster := "bad-" + strings.ReplaceAll(name, " ", "-")
		g.set(http1Server(t, a.talk).secret(cluster))
		for range 4 {
			callers.Go(func() {
				conn, _, resp := g.upgrade(cluster, "/api/v1/namespaces/n/pods/p/exec")
				defer conn.Close()
				if a.want == nil {
					if resp.StatusCode != http.StatusSwitchingProtocols {
						t.Errorf("%s: %s", name, resp.Status)
					}
				} else if fault := faultOf(cluster, resp, nil, a.want); fault != "" {
					t.Errorf("%s: %s", name, fault)
				}
			})
		}
	}
	callers.Wait()
	eventually(t, "all exchanges and connections end", func() bool {
		for _, line := range strings.Split(g.metrics(), "\n") {
			if strings.HasPrefix(line, "cluster_gateway_connections{cluster=bad-") && !strings.HasSuffix(line, " 0") {
				return false
			}
		}
		return g.handler.streams.Load() == 0
	})
	if peak := stop(); peak > 96<<20 {
		t.Errorf("%d MiB of memory were in use", peak>>20)
	}
	eventually(t, "all memory is given back", func() bool { return usedMemory(t, budget) == 0 })
}

// A cluster whose connections cannot be used for another request does not make the gateway collect
// connections.
func TestUselessConnectionsAreBounded(t *testing.T) {
	const requests = 4 * closeIdleAbove
	for name, talk := range map[string]func(h2Conn, uint32){
		"no streams": func(h h2Conn, stream uint32) {
			_ = h.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 0})
			h.answerWhole(stream)
		},
		"GOAWAY": func(h h2Conn, stream uint32) {
			_ = h.WriteGoAway(stream, http2.ErrCodeNo, nil)
			h.answerWhole(stream)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := http2Server(t, true, talk)
			g := newGateway(t, nil)
			g.set(s.secret("a"))
			for range requests {
				resp, body := g.get("a", "/")
				wantCode(t, resp, body, http.StatusOK)
			}
			eventually(t, "useless connections are closed", func() bool { return s.connections() <= closeIdleAbove+1 })
		})
	}
}
