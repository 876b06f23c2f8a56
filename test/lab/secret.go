// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corev1apply "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
)

// ApplySecret creates or changes the Secret of a cluster on a hub.
func (c *Cluster) ApplySecret(ctx context.Context, o SecretOptions) error {
	if o.CredentialType == "" {
		o.CredentialType = "ServiceAccountToken"
	}
	endpoint := "Const"
	if o.Tunnel {
		endpoint = "ClusterProxy"
	}
	secret := corev1apply.Secret(o.Name, defaultServiceNamespace).
		WithType(corev1.SecretTypeOpaque).
		WithLabels(map[string]string{
			gatewayGroup + "/cluster-credential-type": o.CredentialType,
			gatewayGroup + "/cluster-endpoint-type":   endpoint,
		}).
		WithAnnotations(o.Annotations).
		WithData(o.Data)
	_, err := c.client.CoreV1().Secrets(defaultServiceNamespace).Apply(ctx, secret, metav1.ApplyOptions{FieldManager: "lab", Force: true})
	return err
}

// DeleteSecret removes a cluster from a hub.
func (c *Cluster) DeleteSecret(ctx context.Context, name string) error {
	return c.client.CoreV1().Secrets(defaultServiceNamespace).Delete(ctx, name, metav1.DeleteOptions{})
}

// withCodec prepares config for raw requests.
func withCodec(config *rest.Config) *rest.Config {
	config.NegotiatedSerializer = scheme.Codecs.WithoutConversion()
	return config
}
