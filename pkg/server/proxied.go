// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"net/http"

	"k8s.io/apiserver/pkg/endpoints/request"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// isProxied reports whether a request is for the proxy subresource of a ClusterGateway.
func isProxied(info *request.RequestInfo) bool {
	return info.IsResourceRequest && info.Subresource == v1alpha1.ProxySubresource && info.Resource == v1alpha1.ResourceName && info.APIGroup == v1alpha1.GroupName
}

// withProxy hands requests for the proxy subresource to proxied, and all others to api. The API
// machinery must not see the former: it would read, and refuse, options that are meant for the
// managed cluster (dryRun: kubernetes, pkg/endpoints/handlers/rest.go, ConnectResource).
func withProxy(api, proxied http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if info, ok := request.RequestInfoFrom(r.Context()); ok && isProxied(info) {
			proxied.ServeHTTP(w, r)
			return
		}
		api.ServeHTTP(w, r)
	})
}
