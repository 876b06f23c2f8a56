// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"context"
	"encoding/json"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// PublishTunnel returns a function that writes the address of the tunnel and the CA bundle to the
// ConfigMap that agent-bootstrap reads. The address is host:port. If it is empty, it is not
// published, and users have to know it.
func PublishTunnel(client kubernetes.Interface, namespace, address string) func(ctx context.Context, bundle []byte) error {
	maps := client.CoreV1().ConfigMaps(namespace)
	return func(ctx context.Context, bundle []byte) error {
		want := map[string]string{KeyBundle: string(bundle)}
		if address != "" {
			want[KeyAddress] = address
		}
		have, err := maps.Get(ctx, ConfigMap, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			_, err = maps.Create(ctx, &corev1.ConfigMap{
				ObjectMeta: metav1.ObjectMeta{Name: ConfigMap, Labels: map[string]string{labelManagedBy: ManagedBy}}, Data: want,
			}, metav1.CreateOptions{})
			return err
		}
		if err != nil {
			return err
		}
		same := true
		for key, value := range want {
			same = same && have.Data[key] == value
		}
		if same {
			return nil
		}
		patch, err := json.Marshal(map[string]any{"data": want})
		if err != nil {
			return err
		}
		_, err = maps.Patch(ctx, ConfigMap, types.MergePatchType, patch, metav1.PatchOptions{})
		return err
	}
}
