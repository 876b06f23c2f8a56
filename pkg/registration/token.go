// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registration

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"
)

// Lifetimes of the gateway's tokens.
const (
	DefaultTokenLifetime = 30 * 24 * time.Hour
	// MinTokenLifetime is the shortest lifetime that kube-apiserver accepts.
	MinTokenLifetime = 10 * time.Minute
)

// RequestToken asks a cluster for a token of one of the gateway's accounts ([GatewayAccount],
// [MaintenanceAccount]) that is bound to nothing but the account. The cluster may shorten its
// lifetime. Errors are those of the client.
func RequestToken(ctx context.Context, client kubernetes.Interface, account string, lifetime time.Duration) (string, error) {
	request := &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: ptr.To(int64(lifetime.Seconds()))},
	}
	answer, err := client.CoreV1().ServiceAccounts(AgentNamespace).CreateToken(ctx, account, request, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	return answer.Status.Token, nil
}

// TokenClaims are the claims of a ServiceAccount's token that are used here.
type TokenClaims struct {
	// ID is the token's ID (jti). The cluster reports it as the caller's credential ID.
	ID string
	// IssuedAt and Expires are zero if the token does not say.
	IssuedAt, Expires time.Time
}

// ParseToken reads the claims of a token without verifying it. A token that cannot be read has
// none.
func ParseToken(token string) TokenClaims {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return TokenClaims{}
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return TokenClaims{}
	}
	var claims struct {
		IssuedAt int64  `json:"iat"`
		Expires  int64  `json:"exp"`
		ID       string `json:"jti"`
	}
	if json.Unmarshal(payload, &claims) != nil {
		return TokenClaims{}
	}
	c := TokenClaims{ID: claims.ID}
	if claims.Expires != 0 {
		c.IssuedAt, c.Expires = time.Unix(claims.IssuedAt, 0), time.Unix(claims.Expires, 0)
	}
	return c
}
