// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// caseTimeout bounds every subtest without its own timeout.
const caseTimeout = 5 * time.Minute

// podName is the Pod of every site.
const podName = "pod"

// site is where the cases of the matrix run: a route, and on its cluster a namespace with one Pod.
// A case can compare its results with those of the cluster itself (target).
type site struct {
	route
	kubectl   *kubectl
	namespace string
	// config and client reach the cluster by the route.
	config *rest.Config
	client kubernetes.Interface
}

// newSite makes a site for the duration of the test.
func newSite(t *testing.T, r route) *site {
	t.Helper()
	ctx := bounded(t, caseTimeout)
	config := r.gateway.ClusterRESTConfig(r.cluster, r.door)
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	namespace := newNamespace(ctx, t, r.target.Client())
	if _, err := r.target.RunPod(ctx, namespace, podName); err != nil {
		t.Fatal(err)
	}
	return &site{
		route: r, kubectl: newKubectl(t, config, "--namespace", namespace),
		namespace: namespace, config: config, client: client,
	}
}

// newNamespace creates a namespace and deletes it when the test ends, without waiting until it is
// gone.
func newNamespace(ctx context.Context, t *testing.T, client kubernetes.Interface) string {
	t.Helper()
	namespace, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "e2e-"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), caseTimeout)
		defer cancel()
		if err := client.CoreV1().Namespaces().Delete(ctx, namespace.Name, metav1.DeleteOptions{}); err != nil {
			t.Errorf("deleting namespace %s: %v", namespace.Name, err)
		}
	})
	return namespace.Name
}

// bounded returns the test's context with a timeout.
func bounded(t *testing.T, timeout time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	t.Cleanup(cancel)
	return ctx
}

// writeKubeconfig writes a kubeconfig for config, and returns its path.
func writeKubeconfig(t *testing.T, config *rest.Config) string {
	t.Helper()
	kubeconfig := clientcmdapi.NewConfig()
	kubeconfig.Clusters["cluster"] = &clientcmdapi.Cluster{Server: config.Host, CertificateAuthorityData: config.CAData}
	kubeconfig.AuthInfos["user"] = &clientcmdapi.AuthInfo{Token: config.BearerToken, ClientCertificateData: config.CertData, ClientKeyData: config.KeyData}
	kubeconfig.Contexts["context"] = &clientcmdapi.Context{Cluster: "cluster", AuthInfo: "user"}
	kubeconfig.CurrentContext = "context"
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*kubeconfig, path); err != nil {
		t.Fatal(err)
	}
	return path
}

// writeFile writes a file into a temporary folder, and returns its path.
func writeFile(t *testing.T, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
