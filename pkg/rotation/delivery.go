// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package rotation

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// The agent in a cluster (manifests/konnectivity/agent): the Secret with its certificate, and the Deployment that runs it, have one name.
const (
	AgentNamespace = "cluster-gateway-agent"
	AgentName      = "konnectivity-agent"
	// AnnotationAgentCertificate on the Deployment's Pods is [AgentPair.Hash]: when it changes, they are rolled.
	AnnotationAgentCertificate = v1alpha1.GroupName + "/agent-certificate"
)

// fieldManager is whom the API servers note as the author of what is renewed.
const fieldManager = "cluster-gateway-rotation"

// AgentPair is an agent's certificate and key, and the CAs that it verifies the gateway with, in PEM.
type AgentPair struct{ Certificate, Key, CA []byte }

// AgentPairOf reads the pair of an agent's Secret.
func AgentPairOf(secret *corev1.Secret) AgentPair {
	return AgentPair{
		Certificate: secret.Data[corev1.TLSCertKey], Key: secret.Data[corev1.TLSPrivateKeyKey], CA: secret.Data[corev1.ServiceAccountRootCAKey],
	}
}

// Data is what an agent's Secret holds.
func (p AgentPair) Data() map[string][]byte {
	return map[string][]byte{corev1.TLSCertKey: p.Certificate, corev1.TLSPrivateKeyKey: p.Key, corev1.ServiceAccountRootCAKey: p.CA}
}

// Hash differs between pairs, and shows nothing of the key.
func (p AgentPair) Hash() string {
	hash := sha256.New()
	for _, part := range [][]byte{p.Certificate, p.CA} {
		fmt.Fprintf(hash, "%d:", len(part))
		_, _ = hash.Write(part) // a hash takes everything
	}
	return hex.EncodeToString(hash.Sum(nil)[:8])
}

// Format keeps the key out of whatever is printed.
func (p AgentPair) Format(f fmt.State, _ rune) { _, _ = fmt.Fprintf(f, "AgentPair(%s)", p.Hash()) }

// DeliverAgentCertificate gives the agent that runs as Pods in a cluster another certificate, and rolls the Pods: a new one connects before an
// old one drains. It can be repeated, and goes on where it failed. client reaches the cluster, with the rights of the Role cluster-gateway in
// manifests/konnectivity/agent. The error is a NotFound if no agent runs as Pods there.
func DeliverAgentCertificate(ctx context.Context, client kubernetes.Interface, pair AgentPair) error {
	return deliver(ctx, client, nil, pair)
}

// deliver is DeliverAgentCertificate, and fails with a conflict if the Secret is not any more what was read of it; nil: it may be anything.
func deliver(ctx context.Context, client kubernetes.Interface, read *corev1.Secret, pair AgentPair) error {
	change := map[string]any{"data": pair.Data()}
	if read != nil {
		change["metadata"] = map[string]any{"uid": read.UID, "resourceVersion": read.ResourceVersion}
	}
	patch, err := json.Marshal(change)
	if err != nil {
		return err
	}
	// The Secret first: a Pod that starts meanwhile has the new certificate.
	_, err = client.CoreV1().Secrets(AgentNamespace).Patch(ctx, AgentName, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager})
	if err != nil {
		return fmt.Errorf("store the certificate of the agent in the Secret %s/%s of the cluster: %w", AgentNamespace, AgentName, err)
	}
	return roll(ctx, client, pair)
}

// roll has the agent's Pods replaced by such as have read the pair: they read it once, when they start. Nothing happens if they are.
func roll(ctx context.Context, client kubernetes.Interface, pair AgentPair) error {
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"template": map[string]any{"metadata": map[string]any{
		"annotations": map[string]string{AnnotationAgentCertificate: pair.Hash()},
	}}}})
	if err != nil {
		return err
	}
	_, err = client.AppsV1().Deployments(AgentNamespace).Patch(ctx, AgentName, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager})
	if err != nil {
		return fmt.Errorf("roll the Deployment %s/%s of the cluster: %w", AgentNamespace, AgentName, err)
	}
	return nil
}
