// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package rollout runs an earlier version of the gateway and of agent-bootstrap side by side with
// this one: forward, back, and forward again, under traffic. It needs the Git history, and builds
// the earlier version, so it runs only if $CLUSTER_GATEWAY_PREVIOUS names a revision (make
// test-rollout PREVIOUS=REVISION).
package rollout

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/kube-aggregator/pkg/client/clientset_generated/clientset"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/bootstrap"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/test/lab"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

const (
	previousVariable = "CLUSTER_GATEWAY_PREVIOUS"
	hubNamespace     = "cluster-gateway-system"
	// testTimeout bounds the test, which builds a gateway.
	testTimeout = 20 * time.Minute
)

// site is the API servers. admin and viewed are clusters, named for the access that their users
// have. tunneled has an agent.
type site struct {
	lab                          *lab.Lab
	hub, admin, viewed, tunneled *lab.Cluster
	old, now                     string // the gateways
	oldCommand                   string // agent-bootstrap
	// tunnel is what the agent connects to.
	tunnel *lab.Relay
}

var shared site

func TestMain(m *testing.M) {
	if os.Getenv(previousVariable) == "" {
		os.Exit(m.Run())
	}
	labtest.Main(m, func(ctx context.Context, l *lab.Lab) (err error) {
		shared.lab = l
		for name, into := range map[string]**lab.Cluster{
			"hub": &shared.hub, "admin": &shared.admin, "viewed": &shared.viewed, "tunneled": &shared.tunneled,
		} {
			if *into, err = l.StartCluster(ctx, lab.ClusterOptions{Name: name, NoKwok: true}); err != nil {
				return err
			}
		}
		if shared.now, err = lab.BuildGateway(ctx, l.Dir(), false); err != nil {
			return err
		}
		return shared.buildPrevious(ctx, os.Getenv(previousVariable))
	})
}

// buildPrevious builds the programs of an earlier revision.
func (s *site) buildPrevious(ctx context.Context, revision string) error {
	dir := filepath.Join(s.lab.Dir(), "previous")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	root, err := exec.CommandContext(ctx, "git", "rev-parse", "--show-toplevel").Output()
	if err != nil {
		return fmt.Errorf("find the Git repository: %w", err)
	}
	archive := exec.CommandContext(ctx, "git", "-C", strings.TrimSpace(string(root)), "archive", revision)
	content, err := archive.Output()
	if err != nil {
		return fmt.Errorf("git archive %s: %w", revision, err)
	}
	extract := exec.CommandContext(ctx, "tar", "-x", "-C", dir)
	extract.Stdin = bytes.NewReader(content)
	if out, err := extract.CombinedOutput(); err != nil {
		return fmt.Errorf("tar: %w\n%s", err, out)
	}
	build := exec.CommandContext(ctx, "go", "build", "-o", dir+"/bin/", "./cmd/gateway", "./cmd/agent-bootstrap")
	build.Dir = dir
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", revision, err, out)
	}
	s.old, s.oldCommand = filepath.Join(dir, "bin", "gateway"), filepath.Join(dir, "bin", "agent-bootstrap")
	return nil
}

// traffic sends requests to clusters through one gateway at a time.
type traffic struct {
	gateway atomic.Pointer[lab.Gateway]
	sent    atomic.Int64

	mu     sync.Mutex
	failed []string
}

// run sends requests until ctx is done. A gateway that traffic has left gets no more requests after
// a moment.
func (tr *traffic) run(ctx context.Context) {
	for n := 0; ctx.Err() == nil; n++ {
		g := tr.gateway.Load()
		name := []string{"admin", "viewed", "tunneled"}[n%3]
		if err := get(ctx, g, name); err != nil && ctx.Err() == nil {
			tr.mu.Lock()
			tr.failed = append(tr.failed, fmt.Sprintf("%s: %v", name, err))
			tr.mu.Unlock()
		}
		tr.sent.Add(1)
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func get(ctx context.Context, g *lab.Gateway, name string) error {
	config := g.RESTConfig(lab.ViaOwnEndpoint)
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, config.Host+v1alpha1.ProxyPath(name)+"/api/v1/namespaces/default/pods", nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %s", resp.Status)
	}
	return nil
}

// start starts a gateway beside the one that runs, and sends commands and traffic to it.
func (s *site) start(ctx context.Context, t *testing.T, tr *traffic, name, binary string) *lab.Gateway {
	t.Helper()
	g, err := s.lab.StartGateway(ctx, lab.GatewayOptions{Name: name, Hub: s.hub, Binary: binary, ExtraArgs: []string{
		"--health-probe-interval=2s", "--tunnel-server-count=2",
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Kill() })
	s.aggregate(ctx, t, g)
	s.tunnel.Add(tunnelAddress(g))
	if tr.gateway.Load() != nil { // then there is an agent, which finds the new gateway
		labtest.Within(t, labtest.Timeout, "the agent to connect to "+name, func() error { return get(ctx, g, "tunneled") })
	}
	tr.gateway.Store(g)
	return g
}

// tunnelAddress returns where agents reach a gateway.
func tunnelAddress(g *lab.Gateway) string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(g.TunnelPort()))
}

// runAgent registers a cluster with an agent that runs as a process, with the previous version's
// command, and starts the agent. It returns the arguments that register it again.
func (s *site) runAgent(ctx context.Context, t *testing.T) (register []string, dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "agent")
	args := []string{"register", "tunneled", "--cluster-kubeconfig", s.tunneled.Kubeconfig(), "--out-dir", dir, "--endpoint", s.tunneled.Endpoint(), "--wait", "0",
		"--tunnel-address", s.tunnel.Address()}
	s.previously(ctx, t, args...)
	flags, err := os.ReadFile(filepath.Join(dir, "agent.flags"))
	if err != nil {
		t.Fatal(err)
	}
	agent, err := s.lab.StartAgent(ctx, lab.AgentOptions{Name: "agent", Cluster: s.tunneled, Args: strings.Fields(string(flags))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = agent.Kill() })
	return args, dir
}

// readPair reads the certificate of an agent that runs as a process.
func readPair(t *testing.T, dir string) tls.Certificate {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"))
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

// fromCAOfAgents checks whether the CA of agents has issued a certificate.
func (s *site) fromCAOfAgents(ctx context.Context, t *testing.T, pair tls.Certificate, want bool) {
	t.Helper()
	secret, err := s.hub.Client().CoreV1().Secrets(hubNamespace).Get(ctx, "cluster-gateway-agents-ca", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(secret.Data["tls.crt"])
	ca, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if err := pair.Leaf.CheckSignatureFrom(ca); (err == nil) != want {
		t.Errorf("the certificate of %s is from the CA of agents: %v", pair.Leaf.Subject, err == nil)
	}
}

// accepted checks that the tunnel server of a gateway accepts each certificate of an agent, and no
// connection without one. The agent trusts what the hub publishes.
func (s *site) accepted(ctx context.Context, t *testing.T, g *lab.Gateway, certificates map[string]tls.Certificate) {
	t.Helper()
	published, err := s.hub.Client().CoreV1().ConfigMaps(hubNamespace).Get(ctx, "cluster-gateway-tunnel", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(published.Data["ca.crt"]))
	connect := func(pairs ...tls.Certificate) error {
		dialer := tls.Dialer{Config: &tls.Config{
			MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: "cluster-gateway-tunnel." + hubNamespace + ".svc", Certificates: pairs, NextProtos: []string{"h2"},
		}}
		conn, err := dialer.DialContext(ctx, "tcp", tunnelAddress(g))
		if err != nil {
			return err
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(labtest.Timeout)) // a read fails then
		_, err = conn.Read(make([]byte, 1))                   // with TLS 1.3, the server verifies after the client's handshake
		return err
	}
	for name, pair := range certificates {
		if err := connect(pair); err != nil {
			t.Errorf("an agent with a certificate of the %s version: %v", name, err)
		}
	}
	if connect() == nil {
		t.Error("a connection without a certificate was accepted")
	}
}

// aggregate sends what the hub proxies to a gateway.
func (s *site) aggregate(ctx context.Context, t *testing.T, g *lab.Gateway) {
	t.Helper()
	client, err := clientset.NewForConfig(s.hub.RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	services := client.ApiregistrationV1().APIServices()
	const name = "v1alpha1.cluster.core.oam.dev"
	if _, err := services.Get(ctx, name, metav1.GetOptions{}); err != nil {
		if err := g.RegisterAPIService(ctx); err != nil {
			t.Fatal(err)
		}
		return
	}
	port := g.Endpoint()[strings.LastIndex(g.Endpoint(), ":")+1:]
	if _, err := services.Patch(ctx, name, types.MergePatchType, fmt.Appendf(nil, `{"spec":{"service":{"port":%s}}}`, port), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	labtest.Within(t, labtest.Timeout, "the hub to reach the gateway", func() error {
		_, err := s.hub.Client().Discovery().ServerResourcesForGroupVersion(v1alpha1.SchemeGroupVersion.String())
		return err
	})
}

// previously runs agent-bootstrap of the earlier version.
func (s *site) previously(ctx context.Context, t *testing.T, args ...string) {
	t.Helper()
	out, err := exec.CommandContext(ctx, s.oldCommand, append([]string{"--kubeconfig", s.hub.Kubeconfig()}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("previous agent-bootstrap %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// run runs agent-bootstrap of this version.
func (s *site) run(ctx context.Context, t *testing.T, args ...string) {
	t.Helper()
	var out bytes.Buffer
	cmd := bootstrap.NewCommand(bootstrap.Config{Out: &out, ErrOut: &out})
	cmd.SetArgs(append([]string{"--kubeconfig", s.hub.Kubeconfig()}, args...))
	if err := cmd.ExecuteContext(ctx); err != nil {
		t.Fatalf("agent-bootstrap %s: %v\n%s", strings.Join(args, " "), err, &out)
	}
}

func (s *site) register(c *lab.Cluster, name, access string) []string {
	return []string{"register", name, "--cluster-kubeconfig", c.Kubeconfig(), "--route", "direct", "--endpoint", c.Endpoint(), "--access", access, "--wait", "1m"}
}

// shares waits until a cluster has one credential, or two, and checks the rights in the cluster.
func (s *site) shares(ctx context.Context, t *testing.T, c *lab.Cluster, name string, want bool) {
	t.Helper()
	labtest.Within(t, labtest.Timeout, fmt.Sprintf("the credential of %s to be shared: %v", name, want), func() error {
		secret, err := s.hub.Client().CoreV1().Secrets(hubNamespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		condition := meta.FindStatusCondition(cluster.Render(secret, cluster.ParseOptions{}).Status.Conditions, v1alpha1.ConditionCredentialsSeparate)
		if condition == nil || (condition.Status == metav1.ConditionFalse) != want {
			return fmt.Errorf("the condition is %v", condition)
		}
		_, err = c.Client().RbacV1().RoleBindings("cluster-gateway-agent").Get(ctx, "cluster-gateway", metav1.GetOptions{})
		if (err == nil) != want {
			return fmt.Errorf("the rights of the account for callers: %v", err)
		}
		return nil
	})
}

// TestRollout goes from the previous version to this one, back, and forward again. No request
// fails, and what is separated stays separated where this version serves.
func TestRollout(t *testing.T) {
	if os.Getenv(previousVariable) == "" {
		t.Skip("$" + previousVariable + " names no revision to compare with: make test-rollout PREVIOUS=REVISION")
	}
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	s, tr := &shared, &traffic{}
	s.tunnel = labtest.NewRelay(t, "127.0.0.1:0")
	old := s.start(ctx, t, tr, "old-1", s.old)
	s.previously(ctx, t, s.register(s.admin, "admin", "admin")...)
	s.previously(ctx, t, s.register(s.viewed, "viewed", "view")...)
	// A previous version gives a cluster one credential or two.
	_, err := s.admin.Client().RbacV1().RoleBindings("cluster-gateway-agent").Get(ctx, "cluster-gateway", metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	previousShares := err == nil
	registerTunneled, agentDir := s.runAgent(ctx, t)
	labtest.Within(t, labtest.Timeout, "the agent to connect", func() error { return get(ctx, old, "tunneled") })
	trafficCtx, stop := context.WithCancel(ctx)
	var sending sync.WaitGroup
	sending.Go(func() { tr.run(trafficCtx) })
	defer sending.Wait()
	defer stop()
	leave := func(g *lab.Gateway) {
		t.Helper()
		s.tunnel.Remove(tunnelAddress(g))
		time.Sleep(time.Second) // what is in flight ends
		if err := g.Stop(); err != nil {
			t.Fatal(err)
		}
	}

	// Forward. Both serve for a while.
	now := s.start(ctx, t, tr, "new-1", s.now)
	s.shares(ctx, t, s.admin, "admin", previousShares)
	for _, name := range []string{"admin", "viewed", "tunneled"} {
		if err := get(ctx, old, name); err != nil {
			t.Errorf("%s through the previous version: %v", name, err)
		}
	}
	leave(old)
	s.run(ctx, t, "rotate", "admin", "--wait", "1m")
	s.shares(ctx, t, s.admin, "admin", false)
	s.run(ctx, t, registerTunneled...)
	s.shares(ctx, t, s.tunneled, "tunneled", false)
	certificates := map[string]tls.Certificate{"previous": readPair(t, agentDir)}
	s.run(ctx, t, "rotate", "tunneled", "--out-dir", agentDir, "--wait", "0")
	certificates["this"] = readPair(t, agentDir)
	s.fromCAOfAgents(ctx, t, certificates["previous"], false)
	s.fromCAOfAgents(ctx, t, certificates["this"], true)
	s.accepted(ctx, t, now, certificates)
	s.run(ctx, t, "rotate", "viewed", "--wait", "1m")
	s.shares(ctx, t, s.viewed, "viewed", previousShares) // the previous account may not create another one
	s.run(ctx, t, s.register(s.viewed, "viewed", "view")...)
	s.shares(ctx, t, s.viewed, "viewed", false)

	// Back. The previous version serves what is separated, and its commands work.
	old = s.start(ctx, t, tr, "old-2", s.old)
	leave(now)
	s.accepted(ctx, t, old, certificates)
	s.previously(ctx, t, "doctor", "admin")
	s.previously(ctx, t, "rotate", "admin", "--wait", "1m")
	s.previously(ctx, t, s.register(s.viewed, "viewed", "view")...)
	s.previously(ctx, t, registerTunneled...)
	certificates["previous, after this"] = readPair(t, agentDir)

	// Forward again. What the previous commands gave back is taken away.
	now = s.start(ctx, t, tr, "new-2", s.now)
	leave(old)
	s.accepted(ctx, t, now, certificates)
	for name, c := range map[string]*lab.Cluster{"admin": s.admin, "viewed": s.viewed, "tunneled": s.tunneled} {
		s.shares(ctx, t, c, name, false)
		if name == "tunneled" {
			s.run(ctx, t, registerTunneled...)
		} else {
			s.run(ctx, t, "rotate", name, "--wait", "1m")
		}
		if err := get(ctx, now, name); err != nil {
			t.Error(err)
		}
	}
	stop()
	sending.Wait()
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if len(tr.failed) > 0 {
		t.Errorf("%d of %d requests failed: %s", len(tr.failed), tr.sent.Load(), strings.Join(tr.failed[:min(len(tr.failed), 5)], "; "))
	}
	t.Logf("%d requests", tr.sent.Load())
}
