// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

// How long the probe tries: an API server takes a moment to see new roles.
const (
	probeAttempts = 12
	probePause    = 500 * time.Millisecond
)

// probeImpersonation finds out whether the cluster has constrained impersonation: by trying it,
// with an account that exists only for that. Its version says nothing, because it is a feature
// gate. The gateway's own account must never have both forms of the right, not even for a moment.
func (r *registerRun) probeImpersonation(ctx context.Context, applier *registration.Applier, step registration.Step) (err error) {
	name := string(step.Name)
	if r.o.dryRun {
		return r.step(ctx, name, "would be tried: whether the cluster limits what is done while impersonating")
	}
	if _, err := applier.Apply(ctx, registration.Step{Name: step.Name, Side: step.Side, Apply: step.Apply}); err != nil {
		return r.cluster.explain(err)
	}
	defer func() {
		// It is removed even if the command is interrupted.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), connectTimeout)
		defer cancel()
		_, removeErr := applier.Apply(ctx, registration.Step{Name: step.Name, Side: step.Side, Remove: step.Remove})
		err = errors.Join(err, r.cluster.explain(removeErr))
	}()
	token, err := r.cluster.requestToken(ctx, registration.ProbeAccount, registration.MinTokenLifetime)
	if err != nil {
		return err
	}
	constrained, err := r.cluster.hasConstrainedImpersonation(ctx, token)
	if err != nil {
		return fmt.Errorf("try to impersonate in the cluster: %w", r.cluster.explain(err))
	}
	if err := r.plan.SetUnconstrained(!constrained); err != nil {
		return err
	}
	if constrained {
		return r.step(ctx, name, "the cluster limits what is done while impersonating (constrained impersonation)")
	}
	if err := r.step(ctx, name, "the cluster does not limit what is done while impersonating: it is older than Kubernetes 1.36, or has that feature off"); err != nil {
		return err
	}
	if len(r.plan.Spec.Impersonation.Groups) == 0 || len(r.plan.Spec.Impersonation.Users) == 0 {
		r.say("  %-12s the gateway's account can act as any user or group of this cluster, administrators included. To limit it, name them with "+
			"--impersonate-user and --impersonate-group", "warning")
	}
	return nil
}

// hasConstrainedImpersonation uses a token of the probe's account. Only a request that the cluster
// answers as one of the probe's user is a proof; who is refused, and why, is text. Errors are those
// of the client.
func (c *clusterClient) hasConstrainedImpersonation(ctx context.Context, token string) (bool, error) {
	config := rest.AnonymousClientConfig(c.config)
	config.BearerToken = token
	config.Impersonate.UserName = registration.ProbeUser
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return false, err
	}
	// Everybody may do these two, unless somebody has removed the ClusterRoles of Kubernetes.
	reviews, discovery := client.AuthenticationV1().SelfSubjectReviews(), client.Discovery()
	for attempt := range probeAttempts {
		if attempt > 0 {
			if err := pause(ctx, probePause); err != nil {
				return false, err
			}
		}
		var review *authenticationv1.SelfSubjectReview
		review, err = reviews.Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
		if err == nil {
			return review.Status.UserInfo.Username == registration.ProbeUser, nil
		}
		if _, err = discovery.ServerVersion(); err == nil {
			return true, nil
		}
		// The role, the token, or the server may be ready in a moment.
		if !apierrors.IsForbidden(err) && !apierrors.IsUnauthorized(err) && !mayPass(err) {
			return false, err
		}
	}
	if apierrors.IsForbidden(err) {
		return false, nil
	}
	return false, err
}
