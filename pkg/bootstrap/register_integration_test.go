// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build integration

package bootstrap_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/oam-dev/cluster-gateway/pkg/bootstrap"
	"github.com/oam-dev/cluster-gateway/test/lab/bootstraptest"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

// TestOtherForm registers a cluster without an agent in Pods that had one before. register removes
// everything of that agent, and leaves other people's objects alone.
func TestOtherForm(t *testing.T) {
	ctx := site.Begin(t)
	objects := func() map[string]string { return labtest.Objects(ctx, t, site.Near) }
	pods := []string{"register", "near-1", "--cluster-kubeconfig", site.Near.Kubeconfig(), "--wait", "0"}
	for name, form := range map[string][]string{
		"direct":  site.RegisterNear(),
		"process": append(slices.Clone(pods), "--out-dir", filepath.Join(t.TempDir(), "agent")),
	} {
		t.Run(name, func(t *testing.T) {
			site.Must(ctx, t, form...)
			want := objects()
			site.Must(ctx, t, pods...)
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
			_, said := site.Must(ctx, t, append(form, "--dry-run")...)
			if !strings.Contains(said, "would be removed: ") {
				t.Errorf("a dry run says\n%s", said)
			}
			labtest.SameNames(t, "after a dry run", with, objects())
			_, said = site.Must(ctx, t, form...)
			if !strings.Contains(said, "Deployment konnectivity-agent") || !strings.Contains(said, "the previous agent is not needed any more; removed: ") {
				t.Errorf("it does not say what was removed:\n%s", said)
			}
			labtest.SameNames(t, "the agent of before", want, objects())

			maps := site.Near.Client().CoreV1().ConfigMaps(bootstraptest.AgentNamespace)
			if _, err := maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "konnectivity-agent"}}, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			_, said = site.Must(ctx, t, form...)
			if strings.Contains(said, "previous agent") {
				t.Errorf("with no agent of its own there, it says\n%s", said)
			}
			if err := maps.Delete(ctx, "konnectivity-agent", metav1.DeleteOptions{}); err != nil {
				t.Errorf("what is somebody else's: %v", err)
			}
		})
	}
}

// TestInterrupted interrupts register after each of its steps. When register runs again, the result
// is the same as without an interruption.
func TestInterrupted(t *testing.T) {
	ctx := site.Begin(t)
	var steps []string
	record := bootstrap.Config{AfterStep: func(step string) error { steps = append(steps, step); return nil }}
	args := site.RegisterEdge()
	if _, _, err := site.Run(ctx, record, args...); err != nil {
		t.Fatal(err)
	}
	want := [2]map[string]string{labtest.Objects(ctx, t, site.Hub), labtest.Objects(ctx, t, site.Edge)}
	if len(steps) < 8 {
		t.Fatalf("only %d steps: %v", len(steps), steps)
	}
	errInterrupted := errors.New("interrupted by the test")
	for i, step := range steps {
		t.Run(fmt.Sprintf("%d-%s", i, step), func(t *testing.T) {
			site.Must(ctx, t, "unregister", "edge-1", "--cluster-kubeconfig", site.Edge.Kubeconfig())
			done := 0
			stop := bootstrap.Config{AfterStep: func(string) error {
				if done++; done > i {
					return errInterrupted
				}
				return nil
			}}
			if _, _, err := site.Run(ctx, stop, args...); !errors.Is(err, errInterrupted) {
				t.Fatalf("it was not interrupted: %v", err)
			}
			site.Must(ctx, t, args...)
			labtest.SameNames(t, "the hub", want[0], labtest.Objects(ctx, t, site.Hub))
			// ReplicaSets and the like are no part of it; everything is there by name.
			labtest.SameNames(t, "the cluster", want[1], labtest.Objects(ctx, t, site.Edge))
			once := [2]map[string]string{labtest.Objects(ctx, t, site.Hub), labtest.Objects(ctx, t, site.Edge)}
			site.Must(ctx, t, args...)
			labtest.Same(t, "the hub, again", once[0], labtest.Objects(ctx, t, site.Hub))
			labtest.Same(t, "the cluster, again", once[1], labtest.Objects(ctx, t, site.Edge))
		})
	}
}

// TestDryRun checks that a dry run changes nothing, and prints objects without their secret fields.
func TestDryRun(t *testing.T) {
	ctx := site.Begin(t)
	hub, edge := labtest.Objects(ctx, t, site.Hub), labtest.Objects(ctx, t, site.Edge)
	out, said := site.Must(ctx, t, site.RegisterEdge("--dry-run", "-o", "yaml")...)
	labtest.Same(t, "the hub", hub, labtest.Objects(ctx, t, site.Hub))
	labtest.Same(t, "the cluster", edge, labtest.Objects(ctx, t, site.Edge))
	for _, want := range []string{"kind: Deployment", "kind: Secret", "kind: ClusterRoleBinding", "<not shown>"} {
		if !strings.Contains(out, want) {
			t.Errorf("there is no %q in\n%s", want, out)
		}
	}
	if !strings.Contains(said, "would be") {
		t.Errorf("it does not say what would be:\n%s", said)
	}
	// The real thing prints no secrets either.
	out, _ = site.Must(ctx, t, site.RegisterEdge("-o", "json")...)
	secret, err := site.Hub.Client().CoreV1().Secrets(bootstraptest.HubNamespace).Get(ctx, "edge-1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out, string(secret.Data["token"])) || strings.Contains(out, "PRIVATE KEY") || !strings.Contains(out, "<not shown>") {
		t.Error("the token or a key is printed")
	}
	_, said = site.Must(ctx, t, site.RegisterEdge("--dry-run")...)
	if strings.Contains(said, "would be") {
		t.Errorf("with everything in place, a dry run would do something:\n%s", said)
	}
}
