// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

// applySecret makes the cluster one of the gateway's.
func (r *registerRun) applySecret(ctx context.Context) (err error) {
	if r.secret.Token, err = r.token(ctx); err != nil {
		return err
	}
	result, removed, err := r.writeSecret(ctx)
	if err != nil {
		return err
	}
	o, err := registration.ToUnstructured(r.secret.Secret())
	if err != nil {
		return err
	}
	r.applied = append(r.applied, registration.Redacted(o).Object)
	text := summary(map[registration.Outcome]int{result: 1}, r.o.dryRun)
	if len(removed) > 0 {
		text += "; of before, removed: " + strings.Join(removed, ", ")
	}
	return r.step(ctx, "secret", "%s/%s on the hub: %s", r.secret.Namespace, r.secret.Name, text)
}

// secretAttempts bounds how often the Secret is read again: the gateway writes to it as well, what it finds of the cluster's health.
const secretAttempts = 10

// writeSecret writes to what was read only: of two that take a name at the same time, the second is told so.
func (r *registerRun) writeSecret(ctx context.Context) (result registration.Outcome, removed []string, err error) {
	secrets := r.hub.kube.CoreV1().Secrets(r.secret.Namespace)
	for range secretAttempts {
		current, err := secrets.Get(ctx, r.name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			current, err = nil, nil
		}
		if err != nil {
			return "", nil, r.hub.explain(err)
		}
		if err := r.checkMeanwhile(current); err != nil {
			return "", nil, err
		}
		_, result, removed, err = r.secret.Write(ctx, secrets, current, r.o.dryRun)
		if !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) && !apierrors.IsNotFound(err) {
			return result, removed, r.hub.explain(err)
		}
	}
	return "", nil, fmt.Errorf("the Secret %s/%s on the hub changes all the time: run the same command again", r.secret.Namespace, r.name)
}

// checkMeanwhile looks at what has become of the name since checkRegistered did.
func (r *registerRun) checkMeanwhile(current *corev1.Secret) error {
	if r.registered != nil && current == nil {
		return fmt.Errorf("cluster %q has been removed from the hub meanwhile: run the same command again if it is to be registered", r.name)
	}
	r.registered = current
	if err := r.checkRegistered(); err != nil {
		return fmt.Errorf("%q has been registered meanwhile, and nothing of that was changed: %w\nWhat this command has applied to cluster %s goes with: kubectl delete namespace %s",
			r.name, err, r.cluster.uid, registration.AgentNamespace)
	}
	return nil
}

// describe finds out all that the Secret will hold but the token, and whether the gateway can use that.
func (r *registerRun) describe(ctx context.Context) error {
	r.secret = registration.ClusterSecret{
		Name: r.name, Namespace: r.app.hub.namespace, Tunnel: r.o.route == routeTunnel, UID: r.cluster.uid, Access: r.o.access, Endpoint: r.o.endpoint,
	}
	if err := r.trust(ctx, &r.secret); err != nil {
		return err
	}
	example := r.secret
	example.Token = dryRunToken
	if parsed := cluster.Parse(example.Secret(), cluster.ParseOptions{}); parsed.Err() != nil {
		return fmt.Errorf("the gateway could not use what would be registered, and nothing was changed: %s. That is what --cluster-kubeconfig says; --endpoint overrides its endpoint",
			parsed.Message())
	}
	return nil
}

// invalid is what the gateway says of the Secret if it cannot use it as it is now. It may not have read yet what was just written: then this is nil.
func (r *registerRun) invalid(ctx context.Context) error {
	secret, err := r.hub.kube.CoreV1().Secrets(r.app.hub.namespace).Get(ctx, r.name, metav1.GetOptions{})
	if err != nil {
		return nil //nolint:nilerr // it is asked again
	}
	seen, err := r.hub.clusterGateway(ctx, r.name)
	if err != nil || seen.ResourceVersion != secret.ResourceVersion {
		return nil //nolint:nilerr // it is asked again
	}
	ready := meta.FindStatusCondition(seen.Status.Conditions, v1alpha1.ConditionReady)
	if ready == nil || ready.Reason != v1alpha1.ReasonInvalidSecret && ready.Reason != v1alpha1.ReasonUnsupportedProxyConfiguration {
		return nil
	}
	return fmt.Errorf("the cluster is registered, but the gateway cannot use its Secret %s/%s: %s", secret.Namespace, r.name, ready.Message)
}
