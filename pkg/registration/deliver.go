// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registration

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// RenewalFieldManager writes renewed tokens and certificates.
const RenewalFieldManager = "cluster-gateway-rotation"

// DeliverAgentCertificate gives the agent that runs as Pods in a cluster another certificate, and
// rolls its Deployment: a new Pod connects before an old one drains. It can be repeated, and
// continues where it failed. client needs the rights of the Role cluster-gateway in
// manifests/konnectivity/agent. If read is not nil and the agent's Secret is no longer as it was
// read, the error is a Conflict. If no agent runs as Pods, it is a NotFound.
func DeliverAgentCertificate(ctx context.Context, client kubernetes.Interface, read *corev1.Secret, pair AgentPair) error {
	var guard metav1.Object
	if read != nil {
		guard = read
	}
	patch, err := MergePatch(guard, map[string]any{"data": pair.Data()})
	if err != nil {
		return err
	}
	// The Secret first: a Pod that starts meanwhile has the new certificate.
	_, err = client.CoreV1().Secrets(AgentNamespace).Patch(ctx, AgentName, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: RenewalFieldManager})
	if err != nil {
		return fmt.Errorf("store the certificate of the agent in the Secret %s/%s of the cluster: %w", AgentNamespace, AgentName, err)
	}
	return RollAgent(ctx, client, pair)
}

// RollAgent replaces the agent's Pods by Pods that have read the pair: an agent reads it only when
// it starts. If all Pods have read it already, nothing happens.
func RollAgent(ctx context.Context, client kubernetes.Interface, pair AgentPair) error {
	patch, err := MergePatch(nil, map[string]any{"spec": map[string]any{"template": map[string]any{"metadata": map[string]any{
		"annotations": map[string]string{v1alpha1.AnnotationAgentCertificate: pair.Hash()},
	}}}})
	if err != nil {
		return err
	}
	_, err = client.AppsV1().Deployments(AgentNamespace).Patch(ctx, AgentName, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: RenewalFieldManager})
	if err != nil {
		return fmt.Errorf("restart the Pods of Deployment %s/%s of the cluster: %w", AgentNamespace, AgentName, err)
	}
	return nil
}
