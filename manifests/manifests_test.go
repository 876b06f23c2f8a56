// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package manifests_test

import (
	"context"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/oam-dev/cluster-gateway/manifests"
	"github.com/oam-dev/cluster-gateway/test/lab"
)

// TestApply applies every base to a real API server with strict validation, the way a user does, and finds there what programs are given.
// Then it asks whether the Pods are admitted where restricted pod security is enforced.
func TestApply(t *testing.T) {
	binaries, err := lab.FindBinaries(t.Context(), lab.BinariesOptions{Out: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	l, err := lab.New(ctx, lab.Options{Binaries: binaries, KeepLogs: t.Failed})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	c, err := l.StartCluster(ctx, lab.ClusterOptions{Name: "any", NoControllerManager: true, NoKwok: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, base := range []string{manifests.Gateway, manifests.KonnectivityAgent, manifests.KonnectivityInvitation, manifests.KonnectivityServer} {
		t.Run(base, func(t *testing.T) {
			for _, args := range [][]string{{"--validate=strict"}, {"--validate=strict", "--server-side", "--force-conflicts"}} {
				if out, err := c.Kubectl(ctx, append([]string{"apply", "-k", base}, args...)...).CombinedOutput(); err != nil {
					t.Fatalf("kubectl apply -k %s %v: %v\n%s", base, args, err, out)
				} else if strings.Contains(string(out), "Warning") {
					t.Errorf("kubectl apply -k %s %v warns:\n%s", base, args, out)
				}
			}
			objects, err := manifests.Objects(base)
			if err != nil {
				t.Fatal(err)
			}
			compareWithKustomize(t, binaries.Kubectl, base, objects)
			for _, o := range objects {
				admitted(ctx, t, c, o)
			}
		})
	}
}

// compareWithKustomize shows that kubectl kustomize and Objects say the same.
func compareWithKustomize(t *testing.T, kubectl, base string, objects []*unstructured.Unstructured) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), kubectl, "kustomize", base).Output()
	if err != nil {
		t.Fatal(err)
	}
	var want, got []string
	for document := range strings.SplitSeq(string(out), "\n---\n") {
		want = append(want, canonical(t, []byte(document)))
	}
	for _, o := range objects {
		data, err := yaml.Marshal(o.Object)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, canonical(t, data))
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(want, got) {
		t.Errorf("kustomize says\n%s\nand programs get\n%s", strings.Join(want, "---\n"), strings.Join(got, "---\n"))
	}
}

func canonical(t *testing.T, document []byte) string {
	t.Helper()
	var o map[string]any
	if err := yaml.Unmarshal(document, &o); err != nil {
		t.Fatal(err)
	}
	data, err := yaml.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// admitted shows that Pods of a workload pass the pod security that its namespace enforces, and that they would not if they asked for more.
func admitted(ctx context.Context, t *testing.T, c *lab.Cluster, workload *unstructured.Unstructured) {
	t.Helper()
	template, found, err := unstructured.NestedMap(workload.Object, "spec", "template")
	if err != nil || !found {
		return
	}
	pod := &corev1.Pod{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(template, pod); err != nil {
		t.Fatal(err)
	}
	pod.Name = "admitted"
	pods := c.Client().CoreV1().Pods(workload.GetNamespace())
	if _, err := pods.Create(ctx, pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}, FieldValidation: metav1.FieldValidationStrict}); err != nil {
		t.Errorf("a Pod of %s %s is not admitted: %v", workload.GetKind(), workload.GetName(), err)
	}
	pod.Spec.SecurityContext.RunAsNonRoot = nil
	_, err = pods.Create(ctx, pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if err == nil || !strings.Contains(err.Error(), "PodSecurity") {
		t.Errorf("the namespace of %s %s does not enforce restricted pod security: %v", workload.GetKind(), workload.GetName(), err)
	}
}

// TestNothingInsecure shows that no manifest switches the verification of certificates off, or gives a wildcard of rights.
func TestNothingInsecure(t *testing.T) {
	for _, base := range []string{manifests.Gateway, manifests.KonnectivityAgent, manifests.KonnectivityInvitation, manifests.KonnectivityServer} {
		objects, err := manifests.Objects(base)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range objects {
			data, err := yaml.Marshal(o.Object)
			if err != nil {
				t.Fatal(err)
			}
			for _, bad := range []string{"insecure", "'*'", "cluster-admin"} {
				if strings.Contains(strings.ToLower(string(data)), bad) {
					t.Errorf("%s: %s %s contains %s", base, o.GetKind(), o.GetName(), bad)
				}
			}
		}
	}
}
