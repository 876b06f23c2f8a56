// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build integration

package bootstrap_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

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

// TestAgentValues registers a cluster with values for its agent. They are kept when it is
// registered again without them, and so are fields of the Deployment that somebody else manages.
func TestAgentValues(t *testing.T) {
	ctx := site.Begin(t)
	file := filepath.Join(t.TempDir(), "values.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	deployment := func() *appsv1.Deployment {
		t.Helper()
		d, err := site.Edge.Client().AppsV1().Deployments(bootstraptest.AgentNamespace).Get(ctx, "konnectivity-agent", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}

	// What only the API server can check is refused before anything but the namespace is applied.
	write("tolerations: [{key: a, operator: Perhaps}]")
	_, _, err := site.Run(ctx, bootstrap.Config{}, site.RegisterEdge("--agent-values", file)...)
	if err == nil || !strings.Contains(err.Error(), "--agent-values") || !strings.Contains(err.Error(), "Perhaps") {
		t.Errorf("a toleration that does not exist: %v", err)
	}
	if _, err := site.Hub.Client().CoreV1().Secrets(bootstraptest.HubNamespace).Get(ctx, "edge-1", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the hub has a Secret: %v", err)
	}

	write(`{image: mirror.example.com/agent, replicas: 3, omitUser: true, resources: {limits: {memory: 1Gi}}, env: [{name: HTTPS_PROXY, value: "http://proxy:3128"}]}`)
	out, _ := site.Must(ctx, t, site.RegisterEdge("--agent-values", file, "--dry-run", "-o", "yaml")...)
	if !strings.Contains(out, "mirror.example.com/agent") {
		t.Errorf("a dry run does not show the image:\n%s", out)
	}
	site.Must(ctx, t, site.RegisterEdge("--agent-values", file)...)
	patch := `{"spec":{"template":{"spec":{"tolerations":[{"key":"b","operator":"Exists"}]}}}}`
	if _, err := site.Edge.Client().AppsV1().Deployments(bootstraptest.AgentNamespace).Patch(ctx, "konnectivity-agent", types.MergePatchType, []byte(patch), metav1.PatchOptions{FieldManager: "by-hand"}); err != nil {
		t.Fatal(err)
	}
	site.Must(ctx, t, site.RegisterEdge()...)
	d := deployment()
	pod := d.Spec.Template.Spec
	container := pod.Containers[0]
	if container.Image != "mirror.example.com/agent" || *d.Spec.Replicas != 3 || pod.SecurityContext.RunAsUser != nil || pod.SecurityContext.FSGroup != nil ||
		container.Resources.Requests.Cpu().String() != "0" || container.Resources.Limits.Memory().String() != "1Gi" || container.Env[len(container.Env)-1].Value != "http://proxy:3128" {
		t.Errorf("registered again, the agent has lost its values: %+v", d.Spec)
	}
	if len(pod.Tolerations) != 1 || pod.Tolerations[0].Key != "b" {
		t.Errorf("registered again, the toleration that was added by hand is %+v", pod.Tolerations)
	}

	site.Must(ctx, t, site.RegisterEdge("--agent-values", "")...)
	d = deployment()
	container = d.Spec.Template.Spec.Containers[0]
	if strings.HasPrefix(container.Image, "mirror") || *d.Spec.Replicas != 2 || d.Spec.Template.Spec.SecurityContext.RunAsUser == nil || len(container.Env) != 2 {
		t.Errorf("without values, the agent still has some: %+v", d.Spec)
	}
	if _, has := site.HubSecret(ctx, t, "edge-1").Data["agent-values"]; has {
		t.Error("the values are still stored")
	}
}

// TestTakeOver registers a cluster with a hub that was restored from a backup into another cluster:
// it has the Secrets, but another identity. The cluster's credentials stay as they are.
func TestTakeOver(t *testing.T) {
	ctx := site.Begin(t)
	site.Must(ctx, t, site.RegisterEdge()...)
	token := string(site.HubSecret(ctx, t, "edge-1").Data["token"])
	annotate := func(uid string) {
		t.Helper()
		if out, err := site.Edge.Kubectl(ctx, "annotate", "--overwrite", "namespace", bootstraptest.AgentNamespace, "cluster.core.oam.dev/hub-uid="+uid).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	annotate("the-hub-before")
	hub, edge := labtest.Objects(ctx, t, site.Hub), labtest.Objects(ctx, t, site.Edge)
	for _, args := range [][]string{site.RegisterEdge(), {"unregister", "edge-1", "--cluster-kubeconfig", site.Edge.Kubeconfig()}} {
		_, _, err := site.Run(ctx, bootstrap.Config{}, args...)
		if err == nil || !strings.Contains(err.Error(), "agent-bootstrap register edge-1 --cluster-kubeconfig FILE --take-over") {
			t.Errorf("%s: %v", args[0], err)
		}
	}
	_, said := site.Must(ctx, t, site.RegisterEdge("--take-over", "--dry-run")...)
	if !strings.Contains(said, "another hub (the-hub-before) is taken over") || !strings.Contains(said, "cluster-gateway-agent: would be changed") {
		t.Errorf("a dry run says\n%s", said)
	}
	labtest.Same(t, "the hub", hub, labtest.Objects(ctx, t, site.Hub))
	labtest.Same(t, "the cluster", edge, labtest.Objects(ctx, t, site.Edge))

	site.Must(ctx, t, site.RegisterEdge("--take-over")...)
	labtest.Same(t, "the hub, taken over", hub, labtest.Objects(ctx, t, site.Hub))
	if now := string(site.HubSecret(ctx, t, "edge-1").Data["token"]); now != token {
		t.Error("the token was replaced")
	}
	site.Must(ctx, t, site.RegisterEdge()...) // it is this hub's now
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
