// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build integration

package manifests_test

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/oam-dev/cluster-gateway/manifests"
	"github.com/oam-dev/cluster-gateway/test/lab"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

var server *lab.Cluster

func TestMain(m *testing.M) {
	labtest.MainAPIServers(m, map[string]**lab.Cluster{"any": &server})
}

// TestApply applies every base to a real API server with strict validation, as a user does, and
// checks that programs get the same objects. Then it checks that the Pods are admitted where
// restricted pod security is enforced.
func TestApply(t *testing.T) {
	ctx, c := t.Context(), server
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
			compareWithKustomize(t, c, base, objects)
			for _, o := range objects {
				admitted(ctx, t, c, o)
			}
		})
	}
}

// TestAuditComponent applies the base with the component for the audit log, as an overlay does. A
// change of the policy replaces the Pods, because the name of its ConfigMap changes.
func TestAuditComponent(t *testing.T) {
	ctx, c := t.Context(), server
	dir := t.TempDir()
	here, err := filepath.Abs(manifests.Gateway)
	if err != nil {
		t.Fatal(err)
	}
	base, err := filepath.Rel(dir, here)
	if err != nil {
		t.Fatal(err)
	}
	overlay := "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [" + base + "]\ncomponents: [" + base + "/audit]\n"
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(overlay), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := c.Kubectl(ctx, "kustomize", dir).Output()
	if err != nil {
		t.Fatal(err)
	}
	name := regexp.MustCompile(`cluster-gateway-audit-[a-z0-9]+`).FindString(string(out))
	if strings.Count(string(out), name) != 2 || !strings.Contains(string(out), "--audit-policy-file=/etc/cluster-gateway/audit/policy.yaml") {
		t.Errorf("the ConfigMap %q is not that of the volume in\n%s", name, out)
	}
	if out, err := c.Kubectl(ctx, "apply", "-k", dir, "--validate=strict").CombinedOutput(); err != nil || strings.Contains(string(out), "Warning") {
		t.Errorf("%v: %s", err, out)
	}
	deployment, err := c.Client().AppsV1().Deployments("cluster-gateway-system").Get(ctx, "cluster-gateway", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	workload, err := runtime.DefaultUnstructuredConverter.ToUnstructured(deployment)
	if err != nil {
		t.Fatal(err)
	}
	o := &unstructured.Unstructured{Object: workload}
	o.SetAPIVersion("apps/v1")
	o.SetKind("Deployment")
	admitted(ctx, t, c, o)
}

// compareWithKustomize checks that kubectl kustomize and Objects return the same objects.
func compareWithKustomize(t *testing.T, c *lab.Cluster, base string, objects []*unstructured.Unstructured) {
	t.Helper()
	out, err := c.Kubectl(t.Context(), "kustomize", base).Output()
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

// admitted checks that Pods of a workload pass the pod security that its namespace enforces, and
// that they would not pass with fewer restrictions.
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
