// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package inventory

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/oam-dev/cluster-gateway/test/lab"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

// clusterAPINamespace is that of the component manifests/gateway/clusterapi.
const clusterAPINamespace = "clusters"

// TestClusterAPI has a gateway with the rights of the component register a cluster with the
// kubeconfig that Cluster API writes. The cluster is used, and unregistered.
func TestClusterAPI(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	e := shared
	const name = "capi-1"
	kubeconfig, err := os.ReadFile(e.direct.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	sources := e.hub.Client().CoreV1().Secrets(clusterAPINamespace)
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: name + "-kubeconfig", Labels: map[string]string{"cluster.x-k8s.io/cluster-name": name}},
		Type:       "cluster.x-k8s.io/secret", Data: map[string][]byte{"value": kubeconfig},
	}
	broken := secret.DeepCopy()
	broken.Name, broken.Labels["cluster.x-k8s.io/cluster-name"], broken.Data["value"] = "broken-kubeconfig", "broken", []byte("users: [")
	for _, s := range []*corev1.Secret{broken, secret} {
		if _, err := sources.Create(ctx, s, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = sources.Delete(context.WithoutCancel(ctx), s.Name, metav1.DeleteOptions{}) }) // one is deleted below
	}
	client, err := kubernetes.NewForConfig(e.gateway.ClusterRESTConfig(name, lab.ViaOwnEndpoint))
	if err != nil {
		t.Fatal(err)
	}
	labtest.Within(t, labtest.Timeout, "the cluster to be usable", func() error {
		_, err := client.CoreV1().Namespaces().Get(ctx, "kube-system", metav1.GetOptions{})
		return err
	})
	labtest.Within(t, labtest.Timeout, "the Event of the broken kubeconfig", func() error {
		list, err := e.hub.Client().CoreV1().Events("default").List(ctx, metav1.ListOptions{FieldSelector: "reason=InvalidKubeconfig,involvedObject.name=broken"})
		if err == nil && len(list.Items) != 1 {
			err = fmt.Errorf("there are %d", len(list.Items))
		}
		return err
	})
	if err := sources.Delete(ctx, secret.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	labtest.Within(t, labtest.Timeout, "the cluster to be unregistered", func() error {
		_, err := client.CoreV1().Namespaces().Get(ctx, "kube-system", metav1.GetOptions{})
		if !apierrors.IsNotFound(err) {
			return fmt.Errorf("got %w", err)
		}
		return nil
	})
}
