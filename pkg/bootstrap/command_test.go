// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

// TestArguments shows that a command without the cluster's name says so, and that each command that
// changes something has --dry-run.
func TestArguments(t *testing.T) {
	root := NewCommand(Config{})
	named := 0
	for _, cmd := range root.Commands() {
		if !strings.Contains(cmd.Use, " NAME") && !strings.Contains(cmd.Use, "(NAME") || strings.Contains(cmd.Use, " -- ") {
			continue
		}
		named++
		want := "missing the name of the cluster: agent-bootstrap " + cmd.Name() + " NAME"
		if strings.Contains(cmd.Use, "--all") {
			want = "missing the cluster: agent-bootstrap " + cmd.Name() + " NAME. For several clusters, use --selector LABELS or --all"
		}
		for _, c := range []struct {
			args []string
			want string
		}{
			{[]string{cmd.Name()}, want},
			{[]string{cmd.Name(), "edge-1", "edge-2"}, `invalid arguments ["edge-1" "edge-2"]: agent-bootstrap ` + cmd.Name() + ` takes the name of one cluster`},
		} {
			root.SetArgs(c.args)
			if err := root.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v: %v; want %q", c.args, err, c.want)
			}
		}
	}
	if named != 8 {
		t.Errorf("%d commands take a name", named)
	}
	for _, name := range []string{"register", "invite", "unregister", "rotate", "kubeconfig"} {
		if cmd, _, err := root.Find([]string{name}); err != nil || cmd.Flag("dry-run") == nil {
			t.Errorf("%s has no --dry-run (%v)", name, err)
		}
	}
}

// TestUnregisterWaitsForAgents shows that unregister waits for longer than the agent's Pods may
// take to end, with which the namespace goes.
func TestUnregisterWaitsForAgents(t *testing.T) {
	cmd, _, err := NewCommand(Config{}).Find([]string{"unregister"})
	if err != nil {
		t.Fatal(err)
	}
	wait, err := cmd.Flags().GetDuration("wait")
	if err != nil {
		t.Fatal(err)
	}
	deployments, err := registration.AgentBase(func(o *unstructured.Unstructured) bool { return o.GetKind() == "Deployment" })
	if err != nil || len(deployments) != 1 {
		t.Fatalf("%d Deployments, %v", len(deployments), err)
	}
	seconds, found, err := unstructured.NestedFloat64(deployments[0].Object, "spec", "template", "spec", "terminationGracePeriodSeconds")
	if err != nil || !found {
		t.Fatalf("the agent's Pods have no grace period: %v", err)
	}
	if grace := time.Duration(seconds) * time.Second; wait < grace+30*time.Second {
		t.Errorf("it waits %s for Pods that may take %s", wait, grace)
	}
}
