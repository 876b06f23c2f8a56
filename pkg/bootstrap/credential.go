// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
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
	seconds := int64(lifetime.Seconds())
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}
	answer, err := s.kube.CoreV1().ServiceAccounts(registration.AgentNamespace).CreateToken(ctx, registration.GatewayAccount, request, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("asking for a token of %s/%s: %w", registration.AgentNamespace, registration.GatewayAccount, s.explain(err))
	}
	return answer.Status.Token, nil
}

// tokenGood finds out whether the cluster takes a token for the gateway's, and will for a while.
func (r *registerRun) tokenGood(ctx context.Context, token string) (bool, error) {
	begin, end, ok := tokenLife(token)
	if !ok || !r.Now().Before(pki.RenewBetween(begin, end, 0)) {
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
	return review.Status.UserInfo.Username == "system:serviceaccount:"+registration.AgentNamespace+":"+registration.GatewayAccount, nil
}

// tokenLife reads when a ServiceAccount's token begins and ends.
func tokenLife(token string) (begin, end time.Time, ok bool) {
	claims := claimsOf(token)
	if claims.Expires == 0 {
		return begin, end, false
	}
	return time.Unix(claims.IssuedAt, 0), time.Unix(claims.Expires, 0), true
}

// tokenClaims are those of a ServiceAccount's token that are used here.
type tokenClaims struct {
	IssuedAt int64  `json:"iat"`
	Expires  int64  `json:"exp"`
	ID       string `json:"jti"`
}

// claimsOf reads a token, without verifying it. One that cannot be read has none.
func claimsOf(token string) (claims tokenClaims) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return tokenClaims{}
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil || json.Unmarshal(payload, &claims) != nil {
		return tokenClaims{}
	}
	return claims
}

// Lives of the gateway's token.
const (
	defaultTokenLifetime = 30 * 24 * time.Hour
	// minTokenLifetime is what Kubernetes gives out.
	minTokenLifetime = 10 * time.Minute
)

// checkAgentPair finds out what is wrong with the certificate of a cluster's agent. bundle is what the gateway trusts; without one,
// that is not looked at.
func checkAgentPair(certPEM, keyPEM, bundle []byte, name string, now time.Time) (*x509.Certificate, error) {
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("the pair cannot be used: %w", err)
	}
	cert := pair.Leaf
	switch {
	case slices.Contains(cert.Subject.Organization, v1alpha1.InvitationOrganization):
		return cert, fmt.Errorf("it is that of an invitation, which serves only as long as its record is on the hub (agent-bootstrap invite %s --revoke removes it): agent-bootstrap rotate %s --out-dir DIR replaces it by an agent's own", name, name)
	case !slices.Contains(cert.Subject.Organization, v1alpha1.AgentOrganization):
		return cert, fmt.Errorf("it is no agent's: its organisation is %q and not %q", strings.Join(cert.Subject.Organization, ","), v1alpha1.AgentOrganization)
	case cert.Subject.CommonName != name:
		return cert, fmt.Errorf("it is for the cluster %q and not for %q", cert.Subject.CommonName, name)
	case now.Before(cert.NotBefore):
		return cert, fmt.Errorf("it begins at %s only", cert.NotBefore.UTC().Format(time.RFC3339))
	case now.After(cert.NotAfter):
		return cert, fmt.Errorf("it expired at %s", cert.NotAfter.UTC().Format(time.RFC3339))
	case len(bundle) == 0:
		return cert, nil
	}
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	if !roots.AppendCertsFromPEM(bundle) {
		return cert, errors.New("the tunnel's CA bundle on the hub holds no certificate")
	}
	for _, der := range pair.Certificate[1:] {
		if link, err := x509.ParseCertificate(der); err == nil {
			intermediates.AddCert(link)
		}
	}
	if _, err := cert.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}); err != nil {
		return cert, fmt.Errorf("it is foreign: signed by %q, which is not the tunnel's CA: %w", cert.Issuer, err)
	}
	return cert, nil
}
