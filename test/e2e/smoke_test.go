// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"os/exec"
	"strings"
	"testing"
)

func TestSmoke(t *testing.T) {
	forEachRoute(t, func(t *testing.T, r route) {
		kubeconfig, err := r.gateway.ClusterKubeconfig(r.cluster, r.door)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), shared.lab.Binaries().Kubectl, "--kubeconfig", kubeconfig, "get", "nodes,namespaces", "-v=6")
		out, err := cmd.CombinedOutput()
		t.Logf("%s", out)
		if err != nil || !strings.Contains(string(out), "kube-system") {
			t.Fatal(err)
		}
	})
}
