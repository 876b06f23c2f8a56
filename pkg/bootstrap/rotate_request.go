// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

// checkReachable returns an error if the gateway could not carry out a request for a rotation.
func (r *rotateRun) checkReachable(ctx context.Context) error {
	if !cluster.Parse(r.secret, cluster.ParseOptions{}).IsRegistered() {
		return fmt.Errorf("--cluster-kubeconfig is required: cluster %q was not registered with agent-bootstrap, so the gateway does not renew its credentials", r.name)
	}
	if _, err := r.hub.reach(ctx, r.name); err != nil {
		return fmt.Errorf("the cluster cannot be reached through the gateway: %w\nSet --cluster-kubeconfig, or find out why: agent-bootstrap doctor %s", err, r.name)
	}
	return nil
}

// requestRotation asks the gateway to replace the credentials.
func (r *rotateRun) requestRotation(ctx context.Context) error {
	if r.o.dryRun {
		return r.step(ctx, "request", "would be made to the gateway")
	}
	r.request = cluster.RotationRequest{
		ID: string(uuid.NewUUID()), Certificate: r.o.outDir == "", Revoke: r.o.outDir == "" && r.o.revoke, TokenLifetime: metav1.Duration{Duration: r.o.tokenLifetime},
		CertificateLifetime: metav1.Duration{Duration: r.o.agentLifetime},
	}
	value, err := json.Marshal(r.request)
	if err != nil {
		return err
	}
	patch, err := registration.MergePatch(&metav1.ObjectMeta{UID: r.secret.UID}, map[string]any{
		"metadata": map[string]any{"annotations": map[string]string{v1alpha1.AnnotationRotationRequest: string(value)}},
	})
	if err != nil {
		return err
	}
	if r.secret, err = r.patchSecret(ctx, patch); err != nil {
		return err
	}
	return r.step(ctx, "request", "made to the gateway")
}

// patchSecret changes the cluster's Secret, unless the cluster was registered again.
func (r *rotateRun) patchSecret(ctx context.Context, patch []byte) (*corev1.Secret, error) {
	after, err := r.hub.kube.CoreV1().Secrets(r.secret.Namespace).Patch(ctx, r.name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: registration.FieldManager})
	if apierrors.IsConflict(err) {
		return nil, fmt.Errorf("cluster %q was registered again at the same time, and that registration was not changed", r.name)
	}
	if err != nil {
		return nil, r.hub.explain(err)
	}
	return after, nil
}

// awaitTokens waits until the gateway has replaced the tokens.
func (r *rotateRun) awaitTokens(ctx context.Context) error {
	switch {
	case r.o.dryRun:
		return r.step(ctx, "token", "would be replaced")
	case r.o.wait == 0:
		return r.step(ctx, "token", "requested: the gateway replaces it in the next seconds (no wait, because of --wait=0)")
	}
	secret, err := r.awaitRequest(ctx, "the tokens were", func(request cluster.RotationRequest) bool { return !request.WantsTokens() })
	if err != nil {
		return err
	}
	r.token = string(secret.Data[v1alpha1.SecretKeyToken])
	return r.step(ctx, "token", "new, until %s", day(registration.ParseToken(r.token).Expires))
}

// awaitCertificate waits until the gateway has replaced the certificate of an agent that runs as
// Pods.
func (r *rotateRun) awaitCertificate(ctx context.Context) error {
	switch {
	case r.o.dryRun:
		return r.step(ctx, "certificate", "would be replaced, and the agent's Pods restarted")
	case r.o.wait == 0:
		return r.step(ctx, "certificate", "requested: the gateway replaces it in the next seconds (no wait, because of --wait=0)")
	}
	secret, err := r.awaitRequest(ctx, "the certificate of the agent was", func(request cluster.RotationRequest) bool { return !request.WantsCertificate() })
	if err != nil {
		return err
	}
	if cluster.ParseRotationRequest(secret.Annotations).FoundNoAgent() {
		return errors.New("the token was replaced, but the agent's certificate was not: no agent runs in the cluster as Pods. If the agent runs as a process, set --out-dir")
	}
	if err := r.step(ctx, "certificate", "new, and the Pods of Deployment %s/%s are being restarted", registration.AgentNamespace, registration.AgentName); err != nil || !r.o.revoke {
		return err
	}
	if since := v1alpha1.AnnotationAgentCertificatesSince; secret.Annotations[since] == r.secret.Annotations[since] {
		return errors.New("the previous certificates of the agent were not revoked: the gateway is of an earlier version. Update it, and run the same command again")
	}
	r.revoked = true
	return r.step(ctx, "revoke", "%s", revokedText)
}

// awaitRequest waits until done returns true for the request as the gateway has marked it.
func (r *rotateRun) awaitRequest(ctx context.Context, what string, done func(cluster.RotationRequest) bool) (*corev1.Secret, error) {
	waitCtx, cancel := context.WithTimeout(ctx, r.o.wait)
	defer cancel()
	for {
		secret, err := r.hub.kube.CoreV1().Secrets(r.secret.Namespace).Get(waitCtx, r.name, metav1.GetOptions{})
		switch {
		case ctx.Err() != nil:
			return nil, r.hub.explain(ctx.Err())
		case apierrors.IsNotFound(err):
			return nil, notRegistered(r.name)
		case err == nil:
			request := cluster.ParseRotationRequest(secret.Annotations)
			if request.ID != "" && request.ID != r.request.ID {
				return nil, fmt.Errorf("somebody else requested another rotation of cluster %q at the same time, and the gateway carries out that one. To see the result: agent-bootstrap status %[1]s", r.name)
			}
			if request.ID == r.request.ID && done(request) {
				return secret, nil
			}
			if failure := request.Failure(); failure != "" {
				return nil, fmt.Errorf("%s not replaced: %s\nThe gateway tries again. You can also set --cluster-kubeconfig", what, failure)
			}
		}
		if pause(waitCtx, pollInterval) != nil {
			return nil, fmt.Errorf("%s not replaced within %s: the gateway has not carried out the request. Check that one replica of the gateway is the leader (metric leader_election_master_status), or set --cluster-kubeconfig", what, r.o.wait)
		}
	}
}
