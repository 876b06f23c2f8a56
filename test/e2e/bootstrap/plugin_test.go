// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestKubectlPlugin uses the plugin as users do: kubectl finds it, and it runs kubectl.
func TestKubectlPlugin(t *testing.T) {
	ctx := begin(t)
	dir := t.TempDir()
	program := filepath.Join(dir, "kubectl-cg")
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", program, "github.com/oam-dev/cluster-gateway/cmd/agent-bootstrap").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	for name, target := range map[string]string{"kubectl_complete-cg": program, "kubectl": shared.lab.Binaries().Kubectl} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	must(ctx, t, nearbyArgs()...)

	for _, c := range []struct{ line, want string }{
		{"plugin list", "/kubectl-cg\n"},
		{"cg get -o name", "near-1\n"},
		{"cg help status", "kubectl cg status edge-1\n"},
		{"cg with near-1 -- kubectl get namespace kube-system -o name", "namespace/kube-system\n"},
		{"cg each --all -- get namespace kube-system -o name", "==> near-1\nnamespace/kube-system\n"},
		{"cg each near-1 --table -- get namespaces", "\nnear-1    kube-system "},
		{"cg doctor --all", "near-1   ok "},
		{"__complete cg status n", "near-1\n"},
	} {
		out, err := pluginCommand(ctx, dir, strings.Fields(c.line)...).Output()
		if err != nil || !strings.Contains(string(out), c.want) {
			t.Errorf("kubectl %s: %v\n%s\nwant %q", c.line, err, out, c.want)
		}
	}
	out, err := pluginCommand(ctx, dir, "cg", "each", "--all", "--", "get", "nothing").CombinedOutput()
	if err == nil || !strings.Contains(string(out), `near-1  exit code 1: error: the server doesn't have a resource type "nothing"`) {
		t.Errorf("%v\n%s", err, out)
	}
	out, err = pluginCommand(ctx, dir, "cg", "status", "unknown").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "To list the registered clusters: kubectl cg list") {
		t.Errorf("%v\n%s", err, out)
	}
}

// pluginCommand returns a kubectl that finds its plugins in dir, with the kubeconfig of the hub.
func pluginCommand(ctx context.Context, dir string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(dir, "kubectl"), args...)
	cmd.Env = append(os.Environ(), "PATH="+dir, "HOME="+dir, "KUBECACHEDIR="+dir, "KUBECONFIG="+shared.hubFile)
	cmd.WaitDelay = 5 * time.Second
	return cmd
}
