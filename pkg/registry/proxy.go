// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"net/http"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/registry/rest"
	"sigs.k8s.io/apiserver-runtime/pkg/builder/resource/resourcerest"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// ProxyREST is the subresource proxy: it makes discovery and OpenAPI list it, and hands its requests to a handler, which finds the
// cluster's name in the request's RequestInfo.
type ProxyREST struct {
	handler http.Handler
}

var (
	_ rest.Storage           = (*ProxyREST)(nil)
	_ resourcerest.Connecter = (*ProxyREST)(nil)
)

// NewProxyREST returns a storage that hands every request to the handler.
func NewProxyREST(handler http.Handler) *ProxyREST { return &ProxyREST{handler: handler} }

// New is the kind that discovery names for the subresource.
func (r *ProxyREST) New() runtime.Object { return &v1alpha1.ClusterGatewayProxyOptions{} }

// Destroy has nothing to release.
func (r *ProxyREST) Destroy() {}

// Connect returns the handler.
func (r *ProxyREST) Connect(context.Context, string, runtime.Object, rest.Responder) (http.Handler, error) {
	return r.handler, nil
}

// NewConnectOptions takes what follows "proxy/" in the URL as the path.
func (r *ProxyREST) NewConnectOptions() (options runtime.Object, subpath bool, subpathKey string) {
	return &v1alpha1.ClusterGatewayProxyOptions{}, true, "path"
}

// ConnectMethods is every method.
func (r *ProxyREST) ConnectMethods() []string {
	return []string{
		http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut,
		http.MethodPatch, http.MethodDelete, http.MethodOptions,
	}
}
