// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"fmt"

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
