// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"

	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

// tokenAttempts is how often a new token is tried. Of several API servers, one may not know it yet.
const (
	tokenAttempts = 3
	tokenPause    = 500 * time.Millisecond
)

// tryToken uses the new tokens at the address that is registered, before the hub knows about it. A
// server that accepts the credential in the kubeconfig need not accept the cluster's own tokens: a
// management server that stands before the cluster may accept only its own. If it does not,
// everything is undone.
func (r *registerRun) tryToken(ctx context.Context) error {
	server := r.state.Cluster.Server
	if !r.plan.NewToken && !r.plan.NewMaintenanceToken || r.o.dryRun || r.plan.Secret.Endpoint != server.URL {
		return nil // it cannot be tried from here
	}
	var err error
	for attempt := range tokenAttempts {
		if attempt > 0 && pause(ctx, tokenPause) != nil {
			return r.cluster.explain(ctx.Err())
		}
		if err = r.useNewTokens(ctx); !apierrors.IsUnauthorized(err) {
			break
		}
	}
	switch {
	case err == nil:
		return nil
	case mayPass(err):
		return r.cluster.explain(err)
	}
	return r.undo(ctx, fmt.Errorf("the server at %s accepts the credential in --cluster-kubeconfig, but not a token of the cluster's ServiceAccounts (%w), "+
		"so it is not the cluster's API server itself. Use a kubeconfig of the API server, or --route=tunnel", server.URL, err))
}

// useNewTokens returns an error unless the cluster accepts the new tokens. Errors are those of
// useToken.
func (r *registerRun) useNewTokens(ctx context.Context) error {
	if r.plan.NewToken {
		if err := r.cluster.useToken(ctx, r.plan.Secret.Token, registration.GatewayUser); err != nil {
			return err
		}
	}
	if !r.plan.NewMaintenanceToken {
		return nil
	}
	return r.cluster.useToken(ctx, r.plan.Secret.MaintenanceToken, registration.MaintenanceUser)
}

// mayPass is whether a failure says nothing about the token: the server did not answer, or is busy.
func mayPass(err error) bool {
	var network *url.Error
	return errors.As(err, &network) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) ||
		apierrors.IsTooManyRequests(err) || apierrors.IsServiceUnavailable(err) || apierrors.IsServerTimeout(err) || apierrors.IsTimeout(err) || apierrors.IsInternalError(err)
}

// errOtherAccount means that a token is not that of the account that it was requested for.
var errOtherAccount = errors.New("the token is not that of the gateway's account")

// useToken returns an error unless the cluster accepts a token as that of user. If the cluster does
// not say whose it is, any account will do. Errors are those of the client.
func (c *clusterClient) useToken(ctx context.Context, token, user string) error {
	config := rest.AnonymousClientConfig(c.config)
	config.BearerToken = token
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	review, err := client.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	switch {
	case unanswered(err):
		// Everybody may read the version, but not with a token that is not accepted.
		_, err = client.Discovery().ServerVersion()
		if apierrors.IsForbidden(err) {
			err = nil
		}
		return err
	case err != nil:
		return err
	case review.Status.UserInfo.Username != user:
		return fmt.Errorf("%w: the cluster knows its owner as %q", errOtherAccount, review.Status.UserInfo.Username)
	}
	return nil
}

// undo removes what was applied to the cluster, unless it was there before, and returns the reason.
func (r *registerRun) undo(ctx context.Context, reason error) error {
	const namespace = registration.AgentNamespace
	if r.state.Cluster.Namespace != nil {
		return fmt.Errorf("%w\nThe hub was not changed", reason)
	}
	namespaces := r.cluster.kube.CoreV1().Namespaces()
	applied, err := namespaces.Get(ctx, namespace, metav1.GetOptions{})
	if err == nil {
		err = namespaces.Delete(ctx, namespace, metav1.DeleteOptions{
			Preconditions: &metav1.Preconditions{UID: &applied.UID}, PropagationPolicy: ptr.To(metav1.DeletePropagationBackground),
		})
	}
	if err != nil {
		return fmt.Errorf("%w\nThe hub was not changed. To remove what was applied to the cluster: kubectl delete namespace %s", reason, namespace)
	}
	return fmt.Errorf("%w\nThe hub was not changed, and the cluster deletes what was applied to it (namespace %s)", reason, namespace)
}
