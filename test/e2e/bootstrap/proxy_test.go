// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

// proxiedHost is a name of the gateway that no DNS server knows: only the proxy of startProxy finds
// it.
const proxiedHost = "gateway.example.com"

// connectProxy is an HTTP proxy that connects to the tunnel port of the gateway and to nothing
// else.
type connectProxy struct {
	address, target string
	password        string

	mu       sync.Mutex
	tunnels  int
	refusals []string
}

// startProxy starts a proxy that the firewalled cluster can reach.
func startProxy(t *testing.T) *connectProxy {
	t.Helper()
	listener, err := net.Listen("tcp", net.JoinHostPort(shared.lab.HostAddr(shared.edge), "0"))
	if err != nil {
		t.Fatal(err)
	}
	p := &connectProxy{
		address: listener.Addr().String(), target: net.JoinHostPort(proxiedHost, strconv.Itoa(shared.gateway.TunnelPort())),
		password: "Basic am9lOnNlY3JldA==", // joe:secret
	}
	server := &http.Server{Handler: http.HandlerFunc(p.connect)}
	var running sync.WaitGroup
	running.Go(func() { _ = server.Serve(listener) })
	t.Cleanup(func() { server.Close(); running.Wait() })
	return p
}

func (p *connectProxy) connect(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodConnect || r.Host != p.target || r.Header.Get("Proxy-Authorization") != p.password {
		p.mu.Lock()
		p.refusals = append(p.refusals, r.Method+" "+r.Host)
		p.mu.Unlock()
		http.Error(w, "refused", http.StatusForbidden)
		return
	}
	gateway, err := (&net.Dialer{}).DialContext(r.Context(), "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(shared.gateway.TunnelPort())))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer gateway.Close()
	agent, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer agent.Close()
	if _, err := io.WriteString(agent, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		return
	}
	p.mu.Lock()
	p.tunnels++
	p.mu.Unlock()
	var back sync.WaitGroup
	back.Go(func() { _, _ = io.Copy(agent, gateway); agent.Close() })
	_, _ = io.Copy(gateway, buffered)
	gateway.Close()
	back.Wait()
}

// check ends the test unless agents connected through the proxy, and asked it for nothing else.
func (p *connectProxy) check(t *testing.T) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.tunnels == 0 || len(p.refusals) > 0 {
		t.Errorf("the proxy made %d tunnels and refused %q", p.tunnels, p.refusals)
	}
	p.tunnels = 0
}

// TestAgentBehindProxy registers a cluster that reaches the gateway only through an HTTP proxy,
// once with its kubeconfig and once with an invitation. The agent dials the API server without the
// proxy.
func TestAgentBehindProxy(t *testing.T) {
	ctx := begin(t)
	if !shared.edge.Firewalled() {
		t.Skip("an agent on this machine would not use a proxy, and a network namespace needs root")
	}
	if address, err := net.DefaultResolver.LookupHost(ctx, proxiedHost); err == nil {
		t.Skipf("this machine resolves %s to %q", proxiedHost, address)
	}
	proxy := startProxy(t)
	values := filepath.Join(t.TempDir(), "values.yaml")
	content := fmt.Sprintf("env:\n- name: HTTPS_PROXY\n  value: http://joe:secret@%s\n", proxy.address)
	if err := os.WriteFile(values, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	flags := []string{"--agent-values", values, "--tunnel-address", proxy.target}

	t.Run("register", func(t *testing.T) {
		ctx, stop := context.WithCancel(ctx)
		defer stop()
		kubelet(ctx, t)
		must(ctx, t, edgeArgs(flags...)...)
		proxy.check(t)
		sameValues(ctx, t, proxy)
		must(ctx, t, "unregister", "edge-1", "--cluster-kubeconfig", shared.edgeFile)
	})
	t.Run("invite", func(t *testing.T) {
		file, job := invite(ctx, t, append([]string{"edge-1"}, flags...)...)
		started := kubelet(ctx, t)
		enroll(ctx, t, shared.edge, file, job)
		labtest.Within(t, labtest.Timeout, "Ready", func() error { return ready(ctx, "edge-1") })
		select {
		case <-started:
		default:
			t.Error("the cluster is ready without an agent")
		}
		proxy.check(t)
		sameValues(ctx, t, proxy)
	})
}

// sameValues checks that register keeps the values without the flag.
func sameValues(ctx context.Context, t *testing.T, proxy *connectProxy) {
	t.Helper()
	_, said := must(ctx, t, edgeArgs("--tunnel-address", proxy.target, "--dry-run")...)
	if strings.Contains(said, "would be") || !strings.Contains(said, "agent's values of the earlier registration are kept") {
		t.Errorf("without --agent-values, a dry run printed\n%s", said)
	}
}
