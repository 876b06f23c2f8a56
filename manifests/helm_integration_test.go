// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build integration

package manifests_test

import (
	"context"
	"encoding/base64"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/kube-aggregator/pkg/client/clientset_generated/clientset"

	"github.com/oam-dev/cluster-gateway/manifests"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

const apiService = "v1alpha1.cluster.core.oam.dev"

// TestHelm installs the chart of the gateway with the helm command, upgrades it, goes back, and
// uninstalls it. What the gateway writes into the APIService stays throughout. At the end, nothing
// is left, and the namespace can be deleted.
func TestHelm(t *testing.T) {
	ctx, c := t.Context(), server
	const namespace = "cluster-gateway-system"
	deleteGateway(ctx, t)
	chart, err := filepath.Abs("../charts/cluster-gateway")
	if err != nil {
		t.Fatal(err)
	}
	helm := func(args ...string) {
		t.Helper()
		cmd := exec.CommandContext(ctx, "go", append([]string{"tool", "helm", "--namespace", namespace, "--kubeconfig", c.Kubeconfig()}, args...)...)
		cmd.Dir = "../hack/tools/charts"
		cmd.Env = append(os.Environ(), "HELM_CACHE_HOME="+t.TempDir(), "HELM_CONFIG_HOME="+t.TempDir(), "HELM_DATA_HOME="+t.TempDir())
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("helm %s: %v\n%s", strings.Join(args, " "), err, out)
		} else if strings.Contains(strings.ToLower(string(out)), "warning") {
			t.Errorf("helm %s warns:\n%s", strings.Join(args, " "), out)
		}
	}
	aggregator, err := clientset.NewForConfig(c.RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	services := aggregator.ApiregistrationV1().APIServices()
	bundle := []byte("-----BEGIN CERTIFICATE-----\n")
	check := func(replicas int32) {
		t.Helper()
		service, err := services.Get(ctx, apiService, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if string(service.Spec.CABundle) != string(bundle) {
			t.Errorf("the caBundle is %q", service.Spec.CABundle)
		}
		deployment, err := c.Client().AppsV1().Deployments(namespace).Get(ctx, "cluster-gateway", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if *deployment.Spec.Replicas != replicas {
			t.Errorf("there are %d replicas, want %d", *deployment.Spec.Replicas, replicas)
		}
	}

	helm("install", "gateway", chart, "--create-namespace", "--set", "image.repository=registry.example.com/gateway")
	objects, err := manifests.Objects(manifests.Gateway)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := c.Kubectl(ctx, "label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	installed, err := c.Client().AppsV1().Deployments(namespace).Get(ctx, "cluster-gateway", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	workload, err := runtime.DefaultUnstructuredConverter.ToUnstructured(installed)
	if err != nil {
		t.Fatal(err)
	}
	admitted(ctx, t, c, &unstructured.Unstructured{Object: workload})
	patch := `{"spec":{"caBundle":"` + base64.StdEncoding.EncodeToString(bundle) + `"}}`
	if _, err := services.Patch(ctx, apiService, types.MergePatchType, []byte(patch), metav1.PatchOptions{FieldManager: "cluster-gateway"}); err != nil {
		t.Fatal(err)
	}
	check(2)
	helm("upgrade", "gateway", chart, "--reuse-values", "--set", "replicas=3", "--set", "tunnel.advertiseAddress=tunnel.example.com")
	check(3)
	helm("rollback", "gateway", "1")
	check(2)
	helm("uninstall", "gateway")
	for _, o := range objects {
		if o.GetKind() == "Namespace" {
			continue
		}
		if err := c.Kubectl(ctx, "get", o.GetKind(), o.GetName(), "--namespace", o.GetNamespace()).Run(); err == nil {
			t.Errorf("%s %s is left", o.GetKind(), o.GetName())
		}
	}
	deleteGateway(ctx, t)
}

// deleteGateway deletes what an earlier test has applied, and waits until it is gone.
func deleteGateway(ctx context.Context, t *testing.T) {
	t.Helper()
	for _, args := range [][]string{{"apiservice", apiService}, {"-k", manifests.Gateway}} {
		if out, err := server.Kubectl(ctx, append([]string{"delete", "--ignore-not-found", "--wait=false"}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("kubectl delete %v: %v\n%s", args, err, out)
		}
	}
	labtest.Within(t, labtest.Timeout, "the namespace to be gone", func() error {
		_, err := server.Client().CoreV1().Namespaces().Get(ctx, "cluster-gateway-system", metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return err
	})
}
