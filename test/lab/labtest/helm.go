// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package labtest

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Helm returns a function that runs Helm in a namespace of a cluster. Paths must be absolute. It is
// for tests in packages of test/e2e.
func Helm(ctx context.Context, t *testing.T, kubeconfig, namespace string) func(args ...string) {
	t.Helper()
	dir := t.TempDir()
	return func(args ...string) {
		t.Helper()
		cmd := exec.CommandContext(ctx, "go", append([]string{"tool", "helm", "--namespace", namespace, "--kubeconfig", kubeconfig}, args...)...)
		cmd.Dir = filepath.Join("..", "..", "..", "hack", "tools", "charts")
		cmd.Env = append(os.Environ(), "HELM_CACHE_HOME="+dir, "HELM_CONFIG_HOME="+dir, "HELM_DATA_HOME="+dir)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("helm %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}
