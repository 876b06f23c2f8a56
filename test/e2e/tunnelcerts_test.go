// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/oam-dev/cluster-gateway/pkg/pki"
	"github.com/oam-dev/cluster-gateway/test/lab"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

// selfMade starts a gateway with its own hub, so that it creates its own certificates.
func selfMade(ctx context.Context, t *testing.T, name string, args ...string) (g *lab.Gateway, hub *lab.Cluster) {
	t.Helper()
	hub, err := shared.lab.StartCluster(ctx, lab.ClusterOptions{Name: "hub-" + name, NoControllerManager: true, NoKwok: true})
	if err != nil {
		t.Fatal(err)
	}
	stopAfter(t, hub)
	g, err = shared.lab.StartGateway(ctx, lab.GatewayOptions{
		Name: "gateway-" + name, Hub: hub, Binary: shared.binary, AgentsOf: shared.edge, ExtraArgs: args,
	})
	if err != nil {
		t.Fatal(err)
	}
	stopAfter(t, g)
	m, err := hub.Client().CoreV1().ConfigMaps(namespaceOfSecrets).Get(ctx, pki.ConfigMap, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if want := net.JoinHostPort(shared.lab.HostAddr(shared.edge), strconv.Itoa(g.TunnelPort())); m.Data[pki.KeyAddress] != want {
		t.Fatalf("agent-bootstrap gets %v, want %s", m.Data, want)
	}
	return g, hub
}

func authorityOf(ctx context.Context, t *testing.T, hub *lab.Cluster) *pki.Authority {
	t.Helper()
	a, err := pki.Load(ctx, hub.Client().CoreV1().Secrets(namespaceOfSecrets))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// agentFiles returns the options of an agent of the edge cluster with a new certificate of the CA.
func agentFiles(t *testing.T, a *pki.Authority, cluster string, port int) lab.AgentOptions {
	t.Helper()
	cert, key, err := a.IssueAgent(cluster, 0)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // the agent may run as another user
		t.Fatal(err)
	}
	o := lab.AgentOptions{Name: "agent-" + cluster + "-" + filepath.Base(dir), Cluster: shared.edge, ServerPort: port}
	for _, f := range []struct {
		path    *string
		name    string
		content []byte
	}{{&o.CertFile, "tls.crt", cert}, {&o.KeyFile, "tls.key", key}, {&o.CAFile, "ca.crt", a.Bundle()}} {
		*f.path = filepath.Join(dir, f.name)
		if err := os.WriteFile(*f.path, f.content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return o
}

// TestTunnelCertificates checks that the gateway creates its CA and serving certificate itself,
// with exactly the RBAC of its manifest, and replaces both repeatedly without a failed request.
// Agents that do not know the new CA yet can still connect.
func TestTunnelCertificates(t *testing.T) {
	besideOthers(t)
	ctx := bounded(t, 5*caseTimeout)
	const name = "self-made"
	g, hub := selfMade(ctx, t, name, "--tunnel-ca-lifetime=80s", "--tunnel-cert-lifetime=25s", "--health-probe-interval=1s")
	first := authorityOf(ctx, t, hub)
	register(ctx, t, hub, lab.SecretOptions{Name: name, Tunnel: true, Data: map[string][]byte{
		"endpoint": []byte(shared.edge.Endpoint()), "ca.crt": shared.edge.CAPEM(), "token": token(t, shared.edge, "cluster-gateway"),
	}})
	old := agentFiles(t, first, name, g.TunnelPort())
	agent := startAgent(ctx, t, func() (lab.AgentOptions, error) { return old, nil })
	config := g.ClusterRESTConfig(name, lab.ViaOwnEndpoint)
	labtest.Within(t, labtest.Timeout, "the cluster", func() error {
		if r := ask(ctx, t, config, http.MethodGet, "/version"); r.code != http.StatusOK {
			return fmt.Errorf("%+v", r)
		}
		return nil
	})
	servings, requests := map[string]bool{}, 0
	load := func() {
		t.Helper()
		if r := ask(ctx, t, config, http.MethodGet, "/api/v1/namespaces/default"); r.code != http.StatusOK {
			t.Fatalf("request %d: %+v", requests, r)
		}
		requests++
		if s, err := hub.Client().CoreV1().Secrets(namespaceOfSecrets).Get(ctx, pki.ServingSecret, metav1.GetOptions{}); err == nil {
			servings[string(s.Data["tls.crt"])] = true
		}
	}
	next := first
	for began := time.Now(); next.Certificate().Equal(first.Certificate()); next = authorityOf(ctx, t, hub) {
		if time.Since(began) > 3*time.Minute {
			t.Fatal("the CA has not been replaced")
		}
		load()
	}
	// Before the first CA expires, an agent with its certificate reconnects, and so does another one
	// with a certificate of the new CA.
	if err := agent.Stop(); err != nil {
		t.Fatal(err)
	}
	startAgent(ctx, t, func() (lab.AgentOptions, error) { return old, nil })
	load()
	startAgent(ctx, t, func() (lab.AgentOptions, error) { return agentFiles(t, next, name, g.TunnelPort()), nil })
	for range 50 {
		load()
	}
	if len(servings) < 3 {
		t.Errorf("%d serving certificates", len(servings))
	}
	for _, certificate := range []string{"serving", "ca", "agents-ca"} {
		end, err := g.Metric(ctx, "cluster_gateway_tunnel_certificate_expiration_timestamp_seconds", `certificate="`+certificate+`"`)
		if err != nil || end < float64(time.Now().Unix()) {
			t.Errorf("the metric of the %s certificate is %v, %v", certificate, end, err)
		}
	}
	t.Logf("%d requests, %d serving certificates, %s after %s", requests, len(servings), next, first)
}

// TestTunnelCertificatesOfOnesOwn checks that a gateway with certificate files uses them, and
// follows their changes. An agent whose certificate the new CA did not issue is disconnected.
func TestTunnelCertificatesOfOnesOwn(t *testing.T) {
	besideOthers(t)
	ctx := bounded(t, 2*caseTimeout)
	const name = "own-files"
	ca, err := lab.NewCA("own")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // the agent may run as another user
		t.Fatal(err)
	}
	issue := func(file string, o lab.CertOptions) (cert, key string) {
		t.Helper()
		pair, err := ca.Issue(o)
		if err != nil {
			t.Fatal(err)
		}
		if cert, key, err = pair.WriteFiles(dir, file); err != nil {
			t.Fatal(err)
		}
		return cert, key
	}
	caFile := filepath.Join(dir, "ca.crt")
	if err := ca.WriteFile(caFile); err != nil {
		t.Fatal(err)
	}
	host := shared.lab.HostAddr(shared.edge)
	cert, key := issue("tunnel", lab.CertOptions{CN: "tunnel", IPs: []net.IP{net.ParseIP(host)}})
	g, err := shared.lab.StartGateway(ctx, lab.GatewayOptions{
		Name: "gateway-" + name, Hub: shared.embeddedHub, Binary: shared.binary,
		ExtraArgs: []string{"--tunnel-cert-file=" + cert, "--tunnel-private-key-file=" + key, "--tunnel-client-ca-file=" + caFile},
	})
	if err != nil {
		t.Fatal(err)
	}
	stopAfter(t, g)
	register(ctx, t, shared.embeddedHub, lab.SecretOptions{Name: name, Tunnel: true, Data: map[string][]byte{
		"endpoint": []byte(shared.edge.Endpoint()), "ca.crt": shared.edge.CAPEM(), "token": token(t, shared.edge, "cluster-gateway"),
	}})
	agent := lab.AgentOptions{Name: "agent-" + name, Cluster: shared.edge, ServerHost: host, ServerPort: g.TunnelPort(), CAFile: caFile}
	agent.CertFile, agent.KeyFile = issue("agent", lab.CertOptions{CN: name, Orgs: []string{"cluster.core.oam.dev:tunnel-agents"}})
	startAgent(ctx, t, func() (lab.AgentOptions, error) { return agent, nil })
	config := g.ClusterRESTConfig(name, lab.ViaOwnEndpoint)
	labtest.Within(t, labtest.Timeout, "the cluster", func() error { return wantCode(ask(ctx, t, config, http.MethodGet, "/version"), http.StatusOK) })

	other, err := lab.NewCA("another")
	if err != nil {
		t.Fatal(err)
	}
	if err := other.WriteFile(caFile); err != nil {
		t.Fatal(err)
	}
	// The gateway reads the files at least once a minute. A request fails if it is in flight when the
	// agent is disconnected.
	labtest.Within(t, caseTimeout, "the agent to be disconnected", func() error {
		r, err := tryAsk(ctx, config, http.MethodGet, "/version")
		if err != nil {
			return err
		}
		return wantCode(r, http.StatusServiceUnavailable)
	})
}

// TestAgentCertificateByHand runs the commands in docs/certificates.md exactly as they are written
// there, and starts an agent with the certificate that they create.
func TestAgentCertificateByHand(t *testing.T) {
	besideOthers(t)
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("openssl is not installed")
	}
	ctx := bounded(t, caseTimeout)
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "certificates.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(text), "### Issue an agent's certificate by hand")
	_, rest, opened := strings.Cut(rest, "```sh\n")
	script, _, closed := strings.Cut(rest, "```")
	if !found || !opened || !closed || !strings.Contains(script, "openssl") {
		t.Fatal("docs/certificates.md has no instructions")
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // the agent may run as another user
		t.Fatal(err)
	}
	sh := exec.CommandContext(ctx, "sh", "-euc", script)
	sh.Dir = dir
	sh.Env = append(os.Environ(), "KUBECONFIG="+shared.embeddedHub.Kubeconfig(), "PATH="+filepath.Dir(shared.lab.Binaries().Kubectl)+":"+os.Getenv("PATH"))
	if out, err := sh.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	const name = "edge-1"
	register(ctx, t, shared.embeddedHub, lab.SecretOptions{Name: name, Tunnel: true, Data: map[string][]byte{
		"endpoint": []byte(shared.edge.Endpoint()), "ca.crt": shared.edge.CAPEM(), "token": token(t, shared.edge, "cluster-gateway"),
	}})
	startAgent(ctx, t, func() (lab.AgentOptions, error) {
		return lab.AgentOptions{
			Name: "agent-by-hand", Cluster: shared.edge, ServerPort: shared.embedded.TunnelPort(), CertFile: filepath.Join(dir, "edge-1.crt"),
			KeyFile: filepath.Join(dir, "edge-1.key"), CAFile: filepath.Join(dir, "tunnel-ca.crt"),
		}, nil
	})
	labtest.Within(t, labtest.Timeout, "the cluster", func() error {
		return wantCode(ask(ctx, t, shared.embedded.ClusterRESTConfig(name, lab.ViaOwnEndpoint), http.MethodGet, "/version"), http.StatusOK)
	})
}
