// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/oam-dev/cluster-gateway/pkg/bootstrap"
	"github.com/oam-dev/cluster-gateway/pkg/client"
	"github.com/oam-dev/cluster-gateway/test/lab"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

// kubectl runs kubectl with a kubeconfig.
func kubectl(ctx context.Context, t *testing.T, kubeconfig string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(ctx, shared.lab.Binaries().Kubectl, append([]string{"--kubeconfig", kubeconfig}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// TestRegisterTunnel registers a firewalled cluster with its agent in a Pod and uses it.
// Registering it again changes nothing. Unregistering it leaves nothing behind.
func TestRegisterTunnel(t *testing.T) {
	ctx := begin(t)
	hubBefore, edgeBefore := dump(ctx, t, shared.hub), dump(ctx, t, shared.edge)
	kubelet(ctx, t)

	began := time.Now()
	_, said := must(ctx, t, edgeArgs("--wait", "1m")...)
	t.Logf("registered within %s:\n%s", time.Since(began).Round(time.Millisecond), said)

	path := filepath.Join(t.TempDir(), "edge-1.kubeconfig")
	must(ctx, t, "kubeconfig", "edge-1", "-o", path)
	kubectl(ctx, t, path, "create", "configmap", "from-the-hub", "--from-literal=a=b")
	t.Cleanup(func() {
		_ = shared.edge.Client().CoreV1().ConfigMaps("default").Delete(context.Background(), "from-the-hub", metav1.DeleteOptions{})
	})
	if _, err := shared.edge.Client().CoreV1().ConfigMaps("default").Get(ctx, "from-the-hub", noOptions); err != nil {
		t.Errorf("an object that was created through the gateway is not in the cluster: %v", err)
	}
	if err := shared.edge.Client().CoreV1().ConfigMaps("default").Delete(ctx, "from-the-hub", metav1.DeleteOptions{}); err != nil {
		t.Error(err)
	}

	hubOnce, edgeOnce := dump(ctx, t, shared.hub), dump(ctx, t, shared.edge)
	_, said = must(ctx, t, edgeArgs("--wait", "1m")...)
	if strings.Contains(said, "created") || strings.Contains(said, "changed") && !strings.Contains(said, "unchanged") {
		t.Errorf("the second time, something was changed:\n%s", said)
	}
	same(t, "the hub, after registering twice", hubOnce, dump(ctx, t, shared.hub))
	same(t, "the cluster, after registering twice", edgeOnce, dump(ctx, t, shared.edge))

	must(ctx, t, "unregister", "edge-1", "--cluster-kubeconfig", shared.edgeFile)
	sameNames(t, "the hub, after unregistering", hubBefore, dump(ctx, t, shared.hub))
	sameNames(t, "the cluster, after unregistering", edgeBefore, dump(ctx, t, shared.edge))
	must(ctx, t, "unregister", "edge-1", "--cluster-kubeconfig", shared.edgeFile) // nothing to do
}

// same compares objects by version, except for Deployments, whose status a controller writes.
func same(t *testing.T, what string, want, got map[string]string) {
	t.Helper()
	for name, version := range want {
		if got[name] != version {
			t.Errorf("%s: %s is at version %q, and was at %q", what, name, got[name], version)
		}
	}
	sameNames(t, what, want, got)
}

func sameNames(t *testing.T, what string, want, got map[string]string) {
	t.Helper()
	w, g := slices.Sorted(maps.Keys(want)), slices.Sorted(maps.Keys(got))
	for _, name := range g {
		if !slices.Contains(w, name) {
			t.Errorf("%s: %s was not there before", what, name)
		}
	}
	for _, name := range w {
		if !slices.Contains(g, name) {
			t.Errorf("%s: %s is gone", what, name)
		}
	}
}

// TestRegisterProcess registers a cluster with an agent that runs as a process, from the files of
// --out-dir.
func TestRegisterProcess(t *testing.T) {
	ctx := begin(t)
	dir := filepath.Join(t.TempDir(), "agent")
	must(ctx, t, edgeArgs("--out-dir", dir, "--wait", "0")...)
	files := readAll(t, dir)
	agent := startProcess(ctx, t, dir, "process")
	_, said := must(ctx, t, edgeArgs("--out-dir", dir, "--wait", "1m")...)
	if !maps.Equal(files, readAll(t, dir)) {
		t.Errorf("the second time, files were changed:\n%s", said)
	}
	if _, err := shared.edge.Client().AppsV1().Deployments(agentNamespace).Get(ctx, "konnectivity-agent", noOptions); err == nil {
		t.Error("there is also an agent in the cluster")
	}
	// For Go programs.
	config, err := client.ForCluster(shared.hub.RESTConfig(), "edge-1")
	if err != nil {
		t.Fatal(err)
	}
	clientset, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := clientset.CoreV1().Namespaces().Get(ctx, agentNamespace, noOptions); err != nil {
		t.Error(err)
	}
	info, err := os.Stat(filepath.Join(dir, "tls.key"))
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the key's mode is %v", info.Mode())
	}
	// must runs agent-bootstrap and ends the test if that fails.
	must(ctx, t, "rotate", "edge-1", "--out-dir", dir)
	if maps.Equal(files, readAll(t, dir)) {
		t.Error("rotate issued no certificate")
	}
	if err := agent.Kill(); err != nil {
		t.Fatal(err)
	}
	startProcess(ctx, t, dir, "process-rotated")
	must(ctx, t, edgeArgs("--out-dir", dir, "--wait", "1m")...)
	out, _ := must(ctx, t, "status", "edge-1")
	for _, want := range []string{"edge-1", "tunnel", "yes, v1."} {
		if !strings.Contains(out, want) {
			t.Errorf("status does not contain %q:\n%s", want, out)
		}
	}
	out, _ = must(ctx, t, "list")
	if !strings.Contains(out, "edge-1") {
		t.Errorf("list does not contain edge-1:\n%s", out)
	}
}

func readAll(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		files[e.Name()] = string(data)
	}
	for _, want := range []string{"tls.crt", "tls.key", "ca.crt", "agent.flags", "konnectivity-agent.service"} {
		if files[want] == "" {
			t.Errorf("%s is missing", want)
		}
	}
	return files
}

// startProcess runs the agent from the files in a folder, as its systemd unit would.
func startProcess(ctx context.Context, t *testing.T, dir, name string) *lab.Agent {
	t.Helper()
	flags, err := os.ReadFile(filepath.Join(dir, "agent.flags"))
	if err != nil {
		t.Fatal(err)
	}
	agent, err := shared.lab.StartAgent(ctx, lab.AgentOptions{Name: name, Cluster: shared.edge, Args: strings.Fields(string(flags))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = agent.Kill() }) // it may have ended already
	return agent
}

// TestRegisterDirect registers a cluster that the gateway can dial, changes its --access, and
// removes it through the gateway.
func TestRegisterDirect(t *testing.T) {
	ctx := begin(t)
	before := dump(ctx, t, shared.nearby)
	must(ctx, t, nearbyArgs("--access", "view")...)
	path := filepath.Join(t.TempDir(), "kubeconfig")
	must(ctx, t, "kubeconfig", "near-1", "-o", path)
	if out := kubectl(ctx, t, path, "auth", "can-i", "list", "pods"); !strings.Contains(out, "yes") {
		t.Errorf("with --access view, list pods: %s", out)
	}
	if out, err := exec.CommandContext(ctx, shared.lab.Binaries().Kubectl, "--kubeconfig", path, "auth", "can-i", "create", "pods").CombinedOutput(); err == nil {
		t.Errorf("with --access view, create pods: %s", out)
	}
	// The failed unregister removed nothing.
	_, _, err := invoke(ctx, bootstrap.Config{}, "unregister", "near-1")
	if err == nil || !strings.Contains(err.Error(), "--cluster-kubeconfig") {
		t.Errorf("unregister through a gateway without the permission: %v", err)
	}
	must(ctx, t, "doctor", "near-1")
	for _, access := range []string{"impersonate", "edit", "admin"} {
		must(ctx, t, nearbyArgs("--access", access)...)
		if n := accessObjects(ctx, t, shared.nearby); n != map[string]int{"impersonate": 2, "edit": 1, "admin": 1}[access] {
			t.Errorf("--access %s: %d objects bind it", access, n)
		}
		out, _ := must(ctx, t, "doctor", "near-1")
		if strings.Contains(out, "?") {
			t.Errorf("--access %s: doctor could not check everything:\n%s", access, out)
		}
	}
	must(ctx, t, "unregister", "near-1")
	labtest.Within(t, labtest.Timeout, "everything to be removed", func() error {
		for name := range dump(ctx, t, shared.nearby) {
			if _, was := before[name]; !was {
				return errors.New(name + " still exists")
			}
		}
		return nil
	})
}

func accessObjects(ctx context.Context, t *testing.T, c *lab.Cluster) (n int) {
	t.Helper()
	for name := range dump(ctx, t, c) {
		if strings.HasPrefix(name, "ClusterRole") && strings.Contains(name, "cluster-gateway-agent:") {
			n++
		}
	}
	return n
}
