// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
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

// TestRegisterTunnel registers a cluster behind a firewall with its agent in a Pod, uses it, registers it again, which changes nothing,
// and removes it, which leaves nothing behind.
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
		t.Errorf("what was created through the gateway is not in the cluster: %v", err)
	}
	if err := shared.edge.Client().CoreV1().ConfigMaps("default").Delete(ctx, "from-the-hub", metav1.DeleteOptions{}); err != nil {
		t.Error(err)
	}

	hubOnce, edgeOnce := dump(ctx, t, shared.hub), dump(ctx, t, shared.edge)
	_, said = must(ctx, t, edgeArgs("--wait", "1m")...)
	if strings.Contains(said, "created") || strings.Contains(said, "changed") && !strings.Contains(said, "unchanged") {
		t.Errorf("the second time, something was done:\n%s", said)
	}
	same(t, "the hub, after registering twice", hubOnce, dump(ctx, t, shared.hub))
	same(t, "the cluster, after registering twice", edgeOnce, dump(ctx, t, shared.edge))

	must(ctx, t, "unregister", "edge-1", "--cluster-kubeconfig", shared.edgeFile)
	sameNames(t, "the hub, after unregistering", hubBefore, dump(ctx, t, shared.hub))
	sameNames(t, "the cluster, after unregistering", edgeBefore, dump(ctx, t, shared.edge))
	must(ctx, t, "unregister", "edge-1", "--cluster-kubeconfig", shared.edgeFile) // nothing to do
}

// same compares objects down to their versions, without the Deployment, whose status its controller writes.
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
			t.Errorf("%s: there is %s", what, name)
		}
	}
	for _, name := range w {
		if !slices.Contains(g, name) {
			t.Errorf("%s: %s is gone", what, name)
		}
	}
}

// TestRegisterProcess registers with an agent that runs as a process, with the files of --out-dir.
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
		t.Error("there is an agent in the cluster, too")
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
	// New credentials, and an agent that has not been started again yet: both work.
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
			t.Errorf("status does not say %q:\n%s", want, out)
		}
	}
	out, _ = must(ctx, t, "list")
	if !strings.Contains(out, "edge-1") {
		t.Errorf("list does not say edge-1:\n%s", out)
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
			t.Errorf("there is no %s", want)
		}
	}
	return files
}

// startProcess runs the agent of a folder, as its unit would.
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
	t.Cleanup(func() { _ = agent.Kill() }) // it may be dead already
	return agent
}

// TestRegisterDirect registers a cluster that the gateway can dial, changes what it may do there, and removes it through the gateway.
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
	// Nothing is half done.
	_, _, err := invoke(ctx, bootstrap.Config{}, "unregister", "near-1")
	if err == nil || !strings.Contains(err.Error(), "--cluster-kubeconfig") {
		t.Errorf("unregister by a gateway that may not: %v", err)
	}
	must(ctx, t, "doctor", "near-1")
	for _, access := range []string{"impersonate", "edit", "admin"} {
		must(ctx, t, nearbyArgs("--access", access)...)
		if n := accessObjects(ctx, t, shared.nearby); n != map[string]int{"impersonate": 2, "edit": 1, "admin": 1}[access] {
			t.Errorf("--access %s: %d objects bind it", access, n)
		}
		out, _ := must(ctx, t, "doctor", "near-1")
		if strings.Contains(out, "?") {
			t.Errorf("--access %s: doctor does not know everything:\n%s", access, out)
		}
	}
	must(ctx, t, "unregister", "near-1")
	labtest.Within(t, time.Minute, "everything is gone", func() error {
		for name := range dump(ctx, t, shared.nearby) {
			if _, was := before[name]; !was {
				return errors.New(name + " is left")
			}
		}
		return nil
	})
}

// TestOtherForm registers a cluster without an agent in Pods that has had one, which leaves nothing of that, and somebody else's objects alone.
func TestOtherForm(t *testing.T) {
	ctx := begin(t)
	objects := func() map[string]string { return dump(ctx, t, shared.nearby) }
	pods := []string{"register", "near-1", "--cluster-kubeconfig", shared.nearbyFile, "--wait", "0"}
	for name, form := range map[string][]string{
		"direct":  nearbyArgs("--wait", "0"),
		"process": append(slices.Clone(pods), "--out-dir", filepath.Join(t.TempDir(), "agent")),
	} {
		t.Run(name, func(t *testing.T) {
			must(ctx, t, form...)
			want := objects()
			must(ctx, t, pods...)
			with := objects()
			var agent []string
			for name := range with {
				if _, also := want[name]; !also {
					agent = append(agent, name)
				}
			}
			if len(agent) != 7 {
				t.Fatalf("the agent consists of %q", agent)
			}
			_, said := must(ctx, t, append(form, "--dry-run")...)
			if !strings.Contains(said, "would be removed: ") {
				t.Errorf("a dry run says\n%s", said)
			}
			sameNames(t, "after a dry run", with, objects())
			_, said = must(ctx, t, form...)
			if !strings.Contains(said, "Deployment konnectivity-agent") || !strings.Contains(said, "of before is of no use any more; removed: ") {
				t.Errorf("it does not say what was removed:\n%s", said)
			}
			sameNames(t, "the agent of before", want, objects())

			maps := shared.nearby.Client().CoreV1().ConfigMaps(agentNamespace)
			if _, err := maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "konnectivity-agent"}}, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			_, said = must(ctx, t, form...)
			if strings.Contains(said, "of before") {
				t.Errorf("with no agent of its own there, it says\n%s", said)
			}
			if err := maps.Delete(ctx, "konnectivity-agent", metav1.DeleteOptions{}); err != nil {
				t.Errorf("what is somebody else's: %v", err)
			}
		})
	}
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

// TestInterrupted interrupts register after each of its steps; run again, it converges to what an uninterrupted one makes.
func TestInterrupted(t *testing.T) {
	ctx := begin(t)
	var steps []string
	record := bootstrap.Config{AfterStep: func(step string) error { steps = append(steps, step); return nil }}
	args := edgeArgs("--wait", "0")
	if _, _, err := invoke(ctx, record, args...); err != nil {
		t.Fatal(err)
	}
	want := [2]map[string]string{dump(ctx, t, shared.hub), dump(ctx, t, shared.edge)}
	if len(steps) < 8 {
		t.Fatalf("only %d steps: %v", len(steps), steps)
	}
	errInterrupted := errors.New("interrupted by the test")
	for i, step := range steps {
		t.Run(fmt.Sprintf("%d-%s", i, step), func(t *testing.T) {
			must(ctx, t, "unregister", "edge-1", "--cluster-kubeconfig", shared.edgeFile)
			done := 0
			stop := bootstrap.Config{AfterStep: func(string) error {
				if done++; done > i {
					return errInterrupted
				}
				return nil
			}}
			if _, _, err := invoke(ctx, stop, args...); !errors.Is(err, errInterrupted) {
				t.Fatalf("it was not interrupted: %v", err)
			}
			must(ctx, t, args...)
			sameNames(t, "the hub", want[0], dump(ctx, t, shared.hub))
			// ReplicaSets and the like are no part of it; everything is there by name.
			sameNames(t, "the cluster", want[1], dump(ctx, t, shared.edge))
			once := [2]map[string]string{dump(ctx, t, shared.hub), dump(ctx, t, shared.edge)}
			must(ctx, t, args...)
			same(t, "the hub, again", once[0], dump(ctx, t, shared.hub))
			same(t, "the cluster, again", once[1], dump(ctx, t, shared.edge))
		})
	}
}

// TestDryRun shows that a dry run changes nothing, and prints objects without what is secret.
func TestDryRun(t *testing.T) {
	ctx := begin(t)
	hub, edge := dump(ctx, t, shared.hub), dump(ctx, t, shared.edge)
	out, said := must(ctx, t, edgeArgs("--dry-run", "-o", "yaml")...)
	same(t, "the hub", hub, dump(ctx, t, shared.hub))
	same(t, "the cluster", edge, dump(ctx, t, shared.edge))
	for _, want := range []string{"kind: Deployment", "kind: Secret", "kind: ClusterRoleBinding", "<not shown>"} {
		if !strings.Contains(out, want) {
			t.Errorf("there is no %q in\n%s", want, out)
		}
	}
	if !strings.Contains(said, "would be") {
		t.Errorf("it does not say what would be:\n%s", said)
	}
	// The real thing prints no secrets either.
	out, _ = must(ctx, t, edgeArgs("--wait", "0", "-o", "json")...)
	secret, err := shared.hub.Client().CoreV1().Secrets(hubNamespace).Get(ctx, "edge-1", noOptions)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out, string(secret.Data["token"])) || strings.Contains(out, "PRIVATE KEY") || !strings.Contains(out, "<not shown>") {
		t.Error("the token or a key is printed")
	}
	_, said = must(ctx, t, edgeArgs("--dry-run")...)
	if strings.Contains(said, "would be") {
		t.Errorf("with everything in place, a dry run would do something:\n%s", said)
	}
}
