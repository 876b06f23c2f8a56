// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package quickstart runs the commands in docs/quickstart.md on the lab, exactly as they are
// written there.
package quickstart

import (
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/oam-dev/cluster-gateway/test/lab"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

const (
	page           = "docs/quickstart.md"
	hubNamespace   = "cluster-gateway-system"
	agentNamespace = "cluster-gateway-agent"
	// caseTimeout bounds the test. It includes building the commands and Helm.
	caseTimeout = 20 * time.Minute
)

// env is the lab. Its hub has nothing of the gateway yet.
type env struct {
	lab       *lab.Lab
	hub, edge *lab.Cluster
}

// shared is set before the test, and does not change after that.
var shared *env

func TestMain(m *testing.M) { labtest.Main(m, start) }

func start(ctx context.Context, l *lab.Lab) error {
	e := &env{lab: l}
	shared = e
	var group errgroup.Group
	group.Go(func() (err error) {
		// The lab has no kube-proxy: the hub connects to the endpoints of the gateway's Service itself.
		e.hub, err = l.StartCluster(ctx, lab.ClusterOptions{Name: "hub", NoKwok: true, ExtraAPIServerArgs: []string{"--enable-aggregator-routing=true"}})
		return err
	})
	group.Go(func() (err error) {
		e.edge, err = l.StartCluster(ctx, lab.ClusterOptions{Name: "edge", Firewalled: true})
		return err
	})
	return group.Wait()
}

// block is a fenced block of the page.
type block struct{ heading, script string }

// blocks returns the fenced blocks of the page in their order.
func blocks(t *testing.T) []block {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root(t), page))
	if err != nil {
		t.Fatal(err)
	}
	var all []block
	heading, fenced := "", false
	for line := range strings.Lines(string(text)) {
		switch {
		case strings.HasPrefix(line, "```"):
			if fenced = !fenced; fenced {
				if line != "```sh\n" {
					t.Fatalf("%s has a block %q, which this test does not run", page, line)
				}
				all = append(all, block{heading: heading})
			}
		case fenced:
			all[len(all)-1].script += line
		case strings.HasPrefix(line, "## "):
			heading = strings.TrimSpace(strings.TrimPrefix(line, "## "))
		}
	}
	if len(all) < 5 {
		t.Fatalf("%s has %d blocks of commands only", page, len(all))
	}
	return all
}

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs(filepath.Join("..", "..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// variable is an assignment in the first block, which a reader replaces.
var variable = regexp.MustCompile(`(?m)^export ([A-Z]+(?:_[A-Z]+)*)=.*$`)

// TestQuickstart runs the steps of the page one after another. It checks what they have done on
// both sides, and that the last one removes everything.
func TestQuickstart(t *testing.T) {
	if !shared.edge.Firewalled() {
		t.Skip("a firewalled cluster needs a network namespace, which requires root")
	}
	ctx, cancel := context.WithTimeout(t.Context(), caseTimeout)
	defer cancel()
	all := blocks(t)
	r := newReader(ctx, t)
	if names := variable.FindAllStringSubmatch(all[0].script, -1); len(names) != len(r.variables) || strings.Count(all[0].script, "\n") != len(names) {
		t.Fatalf("the first block of %s must set the variables %q and nothing else", page, slices.Sorted(maps.Keys(r.variables)))
	} else {
		for _, name := range names {
			if r.variables[name[1]] == "" {
				t.Fatalf("%s has a variable %s, for which this test has no value", page, name[1])
			}
		}
	}
	runGateway(ctx, t, r)
	agents := shared.lab.RunAgentDeployment(shared.edge, agentNamespace, "konnectivity-agent")
	t.Cleanup(func() {
		if err := agents.Stop(); err != nil {
			t.Error(err)
		}
	})

	output := map[string]string{}
	began := time.Now()
	for _, b := range all[1:] {
		if strings.HasPrefix(b.heading, "5.") {
			checkUsed(ctx, t)
		}
		output[b.heading[:2]] += r.run(ctx, t, b)
		t.Logf("%s: done after %s", b.heading, time.Since(began).Round(time.Second))
	}
	for step, want := range map[string]string{"2.": "condition met", "4.": lab.NodeName} {
		if !strings.Contains(output[step], want) {
			t.Errorf("step %s did not print %q:\n%s", step, want, output[step])
		}
	}
	checkRemoved(ctx, t, r)
}

// checkUsed checks in the firewalled cluster itself, before the last step, what the steps have done
// there through the gateway.
func checkUsed(ctx context.Context, t *testing.T) {
	t.Helper()
	hello, err := shared.edge.Client().CoreV1().ConfigMaps(metav1.NamespaceDefault).Get(ctx, "hello", metav1.GetOptions{})
	if err != nil {
		t.Errorf("an object that was created through the gateway is not in the cluster: %v", err)
	} else if hello.Data["from"] != "hub" {
		t.Errorf("the ConfigMap contains %v", hello.Data)
	}
	dial, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(dial, "tcp", strings.TrimPrefix(shared.edge.Endpoint(), "https://"))
	if err == nil {
		conn.Close()
		t.Error("the cluster is not behind a firewall: its API server can be reached directly")
	}
}

// checkRemoved checks that nothing is left after the last step.
func checkRemoved(ctx context.Context, t *testing.T, r *reader) {
	t.Helper()
	for namespace, c := range map[string]*lab.Cluster{hubNamespace: shared.hub, agentNamespace: shared.edge} {
		if _, err := c.Client().CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("the namespace %s is still there, or: %v", namespace, err)
		}
		for _, kind := range []string{"apiservices", "clusterroles", "clusterrolebindings", "priorityclasses", "configmaps -n default", "rolebindings -n kube-system"} {
			out, err := c.Kubectl(ctx, append([]string{"get", "-o", "name"}, strings.Fields(kind)...)...).Output()
			if err != nil {
				t.Fatalf("kubectl get %s: %v", kind, err)
			}
			for name := range strings.Lines(string(out)) {
				if strings.Contains(name, "cluster-gateway") || strings.Contains(name, "cluster.core.oam.dev") || strings.Contains(name, "hello") {
					t.Errorf("%s is left in cluster %s", strings.TrimSpace(name), c.Name())
				}
			}
		}
	}
	text, err := os.ReadFile(r.variables["KUBECONFIG"])
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), "edge-1") {
		t.Errorf("the kubeconfig still has the cluster:\n%s", text)
	}
}

// reader is somebody who follows the page: a shell with a home folder and variables.
type reader struct {
	root, home, state string
	variables         map[string]string
	environment       []string
	// tunnelPort is the port in the variable TUNNEL.
	tunnelPort int
}

func newReader(ctx context.Context, t *testing.T) *reader {
	t.Helper()
	home := t.TempDir()
	r := &reader{root: root(t), home: home, state: filepath.Join(home, "state")}
	var err error
	if r.tunnelPort, err = shared.lab.FreePort(); err != nil {
		t.Fatal(err)
	}
	edge, err := shared.edge.BastionKubeconfig()
	if err != nil {
		t.Fatal(err)
	}
	r.variables = map[string]string{
		"KUBECONFIG":      filepath.Join(home, "hub.kubeconfig"),
		"EDGE_KUBECONFIG": edge,
		"IMAGE":           "registry.invalid/cluster-gateway",
		"TAG":             "v0.1.0",
		"TUNNEL":          net.JoinHostPort(shared.lab.HostAddr(shared.edge), strconv.Itoa(r.tunnelPort)),
	}
	err = lab.WriteKubeconfig(r.variables["KUBECONFIG"], shared.hub.Endpoint(), shared.hub.CAPEM(),
		&clientcmdapi.AuthInfo{ClientCertificateData: shared.hub.AdminCertPEM(), ClientKeyData: shared.hub.AdminKeyPEM()})
	if err != nil {
		t.Fatal(err)
	}
	// What the page says that the reader needs, besides Go, make and git.
	tools := filepath.Join(home, "tools")
	if err := os.Mkdir(tools, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(shared.lab.Binaries().Kubectl, filepath.Join(tools, "kubectl")); err != nil {
		t.Fatal(err)
	}
	build := exec.CommandContext(ctx, "go", "build", "-C", filepath.Join(r.root, "hack", "tools", "charts"), "-o", filepath.Join(tools, "helm"), "helm.sh/helm/v4/cmd/helm")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build Helm: %v\n%s", err, out)
	}
	r.environment = append(os.Environ(), "HOME="+home, "PATH="+tools+":"+os.Getenv("PATH"))
	for _, name := range []string{"GOPATH", "GOCACHE", "GOMODCACHE", "GOENV"} { // by default, they are in the home folder
		out, err := exec.CommandContext(ctx, "go", "env", name).Output()
		if err != nil {
			t.Fatalf("go env %s: %v", name, err)
		}
		r.environment = append(r.environment, name+"="+strings.TrimSpace(string(out)))
	}
	for name, value := range r.variables {
		r.environment = append(r.environment, name+"="+value)
	}
	return r
}

// run runs a block in the shell that has run the previous ones.
func (r *reader) run(ctx context.Context, t *testing.T, b block) (output string) {
	t.Helper()
	script := "if [ -e " + r.state + " ]; then . " + r.state + "; fi\nset -x\n" + b.script + "export -p >" + r.state + "\n"
	cmd := exec.CommandContext(ctx, "bash", "-euc", script)
	cmd.Dir, cmd.Env, cmd.WaitDelay = r.root, r.environment, 5*time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%q fails: %v\n%s", b.heading, err, out)
	}
	return string(out)
}

// runGateway runs the gateway of the Deployment on the hub, as a kubelet would: as a process with
// the arguments of the Pod template.
func runGateway(ctx context.Context, t *testing.T, r *reader) {
	t.Helper()
	binary, err := lab.BuildGateway(ctx, shared.lab.Dir(), false)
	if err != nil {
		t.Fatal(err)
	}
	gateways, err := shared.lab.RunGatewayDeployment(lab.GatewayDeploymentOptions{
		Hub: shared.hub, Address: shared.lab.HostAddr(shared.edge), TunnelPort: r.tunnelPort,
		Program: func(image string) (lab.ProcessOptions, error) {
			if image != r.variables["IMAGE"]+":"+r.variables["TAG"] {
				return lab.ProcessOptions{}, fmt.Errorf("the image is %s", image)
			}
			return lab.ProcessOptions{Path: binary}, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := gateways.Stop(); err != nil {
			t.Errorf("the gateway of the Deployment: %v", err)
		}
	})
}
