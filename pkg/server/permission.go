// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"fmt"

	"k8s.io/apiserver/pkg/authorization/authorizer"
	genericapiserver "k8s.io/apiserver/pkg/server"

	"github.com/oam-dev/cluster-gateway/pkg/policy"
)

// newPermissions returns what authorizes proxied requests. It asks the hub as the authorization of
// the generic API server does, and keeps decisions for the same time.
func newPermissions(o *GenericOptions, proxied bool) (*policy.Authorizer, error) {
	uncached := *o.Authorization
	uncached.AllowCacheTTL, uncached.DenyCacheTTL = 0, 0
	var hub genericapiserver.AuthorizationInfo
	if err := uncached.ApplyTo(&hub); err != nil {
		return nil, fmt.Errorf("cannot authorize proxied requests: %w", err)
	}
	return policy.New(policy.Config{
		Hub: hub.Authorizer, Proxied: proxied, AllowTTL: o.Authorization.AllowCacheTTL, DenyTTL: o.Authorization.DenyCacheTTL,
	}), nil
}

// hubAuthorizer says in errors of an authorizer that the hub was asked: callers see them.
type hubAuthorizer struct{ authorizer.Authorizer }

// Authorize implements authorizer.Authorizer.
func (a hubAuthorizer) Authorize(ctx context.Context, attributes authorizer.Attributes) (authorizer.Decision, string, error) {
	decision, reason, err := a.Authorizer.Authorize(ctx, attributes)
	if err != nil {
		err = fmt.Errorf("the gateway cannot ask the hub whether you may do this: %w", err)
	}
	return decision, reason, err
}
