// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/oam-dev/cluster-gateway/pkg/internal/memory"
)

const followPath = "/api/v1/namespaces/n/pods/p/log?follow=true"

// usedMemory returns how much of a budget is used.
func usedMemory(t *testing.T, b *memory.Budget) (used float64) {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(b)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "cluster_gateway_memory_used_bytes" {
			for _, m := range f.GetMetric() {
				used += m.GetGauge().GetValue()
			}
		}
	}
	return used
}

// TestMemoryBudget checks that long-running requests are refused when their share of the memory is
// used up, that ordinary requests and other clusters still find some, and that all of it is given
// back.
func TestMemoryBudget(t *testing.T) {
	s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/log") {
			w.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
			return
		}
		_, _ = io.Copy(w, r.Body)
	})
	const budget = 8 << 20
	b := memory.NewBudget(budget)
	g := newGateway(t, func(c *Config) { c.Memory = b })
	g.set(s.secret("a"))
	g.set(s.secret("b"))
	follow := func(name string) *http.Response {
		t.Helper()
		resp, err := g.client.Get(g.url(name, followPath))
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	var open []*http.Response
	for {
		resp := follow("a")
		open = append(open, resp)
		if resp.StatusCode == http.StatusOK {
			continue
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		wantCode(t, resp, string(body), http.StatusTooManyRequests)
		if resp.Header.Get("Retry-After") == "" || !strings.Contains(string(body), `no memory for more long-running requests`) ||
			!strings.Contains(string(body), "6 MiB") || !strings.Contains(string(body), "--memory-budget") {
			t.Errorf("the refusal is %v %s", resp.Header, body)
		}
		break
	}
	// Half of three quarters.
	if n := len(open) - 1; n != budget*3/8/streamMemory {
		t.Errorf("one cluster has %d long-running requests, want %d", n, budget*3/8/streamMemory)
	}
	resp := follow("b")
	open = append(open, resp)
	wantCode(t, resp, "", http.StatusOK)
	for _, name := range []string{"a", "b"} {
		resp, body := g.do(http.MethodPost, name, "/api/v1/namespaces", strings.NewReader("{}"))
		wantCode(t, resp, body, http.StatusOK)
	}
	if !strings.Contains(g.metrics(), "requests_total{cluster=a,code=429,route=direct,verb=get} 1\n") {
		t.Errorf("the refusal is not counted: %s", g.metrics())
	}
	for _, resp := range open {
		_ = resp.Body.Close()
	}
	eventually(t, "all memory is given back", func() bool { return usedMemory(t, b) == 0 })
}

// TestLongRunningRequestsUseSmallWindows checks how much of an answer the gateway accepts for a
// client that does not read it.
func TestLongRunningRequestsUseSmallWindows(t *testing.T) {
	var sent atomic.Int64
	s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		controller := http.NewResponseController(w)
		for r.Context().Err() == nil {
			n, err := w.Write(make([]byte, 4<<10))
			if err != nil || controller.Flush() != nil {
				return
			}
			sent.Add(int64(n))
		}
	})
	g := newGateway(t, nil)
	g.client.Transport.(*http.Transport).HTTP2 = &http.HTTP2Config{MaxReceiveBufferPerStream: 64 << 10}
	g.set(s.secret("a"))
	resp, err := g.client.Get(g.url("a", followPath))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	last := int64(-1)
	eventually(t, "the cluster is made to wait", func() bool {
		now := sent.Load()
		stopped := now == last
		last = now
		if !stopped {
			return false
		}
		for range 50 { // still nothing
			runtime.Gosched()
		}
		return sent.Load() == now && now > 0
	})
	if n := sent.Load(); n >= receiveWindow {
		t.Errorf("the gateway and the client accepted %d bytes that nobody reads", n)
	}
}

const childClusters = "TEST_PROXY_MEMORY_CHILD"

// childBudget is the budget of the child of TestUnreadAnswersDoNotFillMemory.
const childBudget = 64 << 20

// TestMemoryChild is the gateway of TestUnreadAnswersDoNotFillMemory. It reports where it serves,
// and then, for each line that it reads, how many bytes are in use.
func TestMemoryChild(t *testing.T) {
	endpoint, ca, ok := strings.Cut(os.Getenv(childClusters), " ")
	if !ok {
		t.Skip("a child of TestUnreadAnswersDoNotFillMemory")
	}
	pem, err := base64.StdEncoding.DecodeString(ca)
	if err != nil {
		t.Fatal(err)
	}
	g := newGateway(t, func(c *Config) { c.Memory = memory.NewBudget(childBudget) })
	for _, name := range []string{"logs", "execs", "quiet"} {
		g.set(secretWith(name, "endpoint", endpoint, "ca.crt", string(pem), "token", testToken))
	}
	fmt.Printf("URL %s\n", g.server.URL)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		fmt.Printf("HEAP %d\n", m.HeapAlloc)
	}
}

// TestUnreadAnswersDoNotFillMemory opens many followed logs and execs that nobody reads, and checks
// that the gateway's memory stays near its budget, and that it still serves another cluster.
func TestUnreadAnswersDoNotFillMemory(t *testing.T) {
	const follows, execs = 1500, 200
	flood := func(w io.Writer) {
		for chunk := make([]byte, 32<<10); ; {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	}
	s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/exec"):
			conn, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			defer conn.Close()
			_, _ = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
			_ = rw.Flush()
			flood(conn)
		case strings.HasSuffix(r.URL.Path, "/log"):
			flood(w)
		default:
			_, _ = io.WriteString(w, "ok")
		}
	})
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestMemoryChild$", "-test.timeout=10m")
	child.Env = append(os.Environ(), childClusters+"="+s.URL+" "+base64.StdEncoding.EncodeToString([]byte(s.ca())))
	child.Stderr = os.Stderr
	stdin, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stdin.Close(); _ = child.Process.Kill(); _ = child.Wait() }()
	lines := bufio.NewScanner(stdout)
	answer := func(key string) string {
		t.Helper()
		for lines.Scan() {
			if value, ok := strings.CutPrefix(lines.Text(), key+" "); ok {
				return value
			}
		}
		t.Fatalf("the child ended without %s: %v", key, lines.Err())
		return ""
	}
	url := answer("URL")
	config := &tls.Config{InsecureSkipVerify: true} //nolint:gosec // a test server
	transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true, HTTP2: &http.HTTP2Config{MaxReceiveBufferPerStream: 64 << 10}}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}

	var mu sync.Mutex
	codes := map[int]int{}
	var open []io.Closer
	add := func(code int, c io.Closer) {
		mu.Lock()
		defer mu.Unlock()
		codes[code]++
		open = append(open, c)
	}
	defer func() {
		for _, c := range open {
			_ = c.Close()
		}
	}()
	var group sync.WaitGroup
	for worker := range 20 {
		group.Go(func() {
			for range follows / 20 {
				resp, err := client.Get(url + basePath + "logs/proxy" + followPath)
				if err != nil {
					t.Error(err)
					return
				}
				add(resp.StatusCode, resp.Body)
			}
			for range execs / 20 {
				conn, err := tls.Dial("tcp", strings.TrimPrefix(url, "https://"), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}}) //nolint:gosec // the same
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = fmt.Fprintf(conn, "GET %sexecs/proxy/api/v1/namespaces/n/pods/p%d/exec HTTP/1.1\r\nHost: g\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", basePath, worker)
				resp, err := http.ReadResponse(bufio.NewReaderSize(conn, 16), nil)
				if err != nil {
					t.Error(err)
					return
				}
				add(resp.StatusCode, conn)
			}
		})
	}
	group.Wait()
	if codes[http.StatusTooManyRequests] == 0 || codes[http.StatusOK] == 0 || codes[http.StatusSwitchingProtocols] == 0 || len(codes) != 3 {
		t.Errorf("answers by code: %v, want some of 101, 200 and 429", codes)
	}
	for range 50 {
		resp, err := client.Get(url + basePath + "quiet/proxy/api/v1/namespaces/n")
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK || err != nil {
			t.Fatalf("a request to another cluster: %s %s, %v", resp.Status, body, err)
		}
	}
	if _, err := io.WriteString(stdin, "\n"); err != nil {
		t.Fatal(err)
	}
	heap, err := strconv.Atoi(answer("HEAP"))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("answers by code: %v; %d MiB in use", codes, heap>>20)
	if heap > 2*childBudget {
		t.Errorf("%d MiB are in use, with a budget of %d MiB", heap>>20, childBudget>>20)
	}
}
