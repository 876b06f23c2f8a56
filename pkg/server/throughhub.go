// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"net/http"

	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/authenticatorfactory"
	"k8s.io/apiserver/pkg/authentication/request/x509"

	"github.com/oam-dev/cluster-gateway/pkg/proxy"
)

// withThroughHub tells proxied which requests the hub's aggregation layer sent: those whose
// connection has the certificate of the hub's front proxy. The authentication filter accepts the
// front proxy's headers under the same condition, and it has removed them by now. c is nil if the
// gateway accepts no front proxy.
func withThroughHub(proxied http.Handler, c *authenticatorfactory.RequestHeaderConfig) http.Handler {
	if c == nil || c.CAContentProvider == nil {
		return proxied
	}
	frontProxy := x509.NewDynamicCAVerifier(c.CAContentProvider.VerifyOptions, anyRequest{}, c.AllowedClientNames)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := proxy.WithThroughHub(r.Context(), func() bool {
			_, ok, err := frontProxy.AuthenticateRequest(r)
			return ok && err == nil
		})
		proxied.ServeHTTP(w, r.WithContext(ctx))
	})
}

// anyRequest accepts every request. It follows a check of the client certificate.
type anyRequest struct{}

var _ authenticator.Request = anyRequest{}

// AuthenticateRequest implements authenticator.Request.
func (anyRequest) AuthenticateRequest(*http.Request) (*authenticator.Response, bool, error) {
	return nil, true, nil
}
