// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"fmt"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/pki"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

// dryRunToken stands for a token that a dry run does not ask for.
const dryRunToken = "dry-run"

// token returns the token that the hub has if it is still good, or a new one.
func (r *registerRun) token(ctx context.Context) (string, error) {
	if r.registered != nil {
		if current := string(r.registered.Data[v1alpha1.SecretKeyToken]); current != "" {
			good, err := r.tokenGood(ctx, current)
			if err != nil || good {
				return current, err
			}
		}
	}
	if r.o.dryRun {
		return dryRunToken, nil
	}
	return requestToken(ctx, r.cluster, r.o.tokenLifetime)
}

// requestToken asks the cluster for a token of the gateway's account.
func requestToken(ctx context.Context, s *clusterClient, lifetime time.Duration) (string, error) {
	token, err := registration.RequestToken(ctx, s.kube, lifetime)
	if err != nil {
		return "", fmt.Errorf("request a token for %s/%s: %w", registration.AgentNamespace, registration.GatewayAccount, s.explain(err))
	}
	return token, nil
}

// tokenGood finds out whether the cluster takes a token for the gateway's, and will for a while.
func (r *registerRun) tokenGood(ctx context.Context, token string) (bool, error) {
	claims := registration.ParseToken(token)
	if claims.Expires.IsZero() || !r.Now().Before(pki.RenewBetween(claims.IssuedAt, claims.Expires, 0)) {
		return false, nil
	}
	config := rest.AnonymousClientConfig(r.cluster.config)
	config.BearerToken = token
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return false, err
	}
	review, err := client.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	switch {
	case apierrors.IsUnauthorized(err):
		return false, nil
	case err != nil:
		return false, r.cluster.explain(err)
	}
	return review.Status.UserInfo.Username == registration.GatewayUser, nil
}
