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

// ProxyREST is the subresource proxy. Because of it, discovery and OpenAPI list the subresource. It
// passes requests to a handler, which finds the name of the cluster in the RequestInfo.
type ProxyREST struct {
	handler http.Handler
}

var (
	_ rest.Storage           = (*ProxyREST)(nil)
	_ resourcerest.Connecter = (*ProxyREST)(nil)
)

// NewProxyREST returns a storage that passes every request to the handler.
func NewProxyREST(handler http.Handler) *ProxyREST { return &ProxyREST{handler: handler} }

// New returns an object of the kind that discovery lists for the subresource.
func (r *ProxyREST) New() runtime.Object { return &v1alpha1.ClusterGatewayProxyOptions{} }

// Destroy does nothing.
func (r *ProxyREST) Destroy() {}

// Connect returns the handler.
func (r *ProxyREST) Connect(context.Context, string, runtime.Object, rest.Responder) (http.Handler, error) {
	return r.handler, nil
}

// NewConnectOptions returns the options of a request. The path is the rest of the URL after
// "proxy/".
func (r *ProxyREST) NewConnectOptions() (options runtime.Object, subpath bool, subpathKey string) {
	return &v1alpha1.ClusterGatewayProxyOptions{}, true, "path"
}

// ConnectMethods returns all methods.
func (r *ProxyREST) ConnectMethods() []string {
	return []string{
		http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut,
		http.MethodPatch, http.MethodDelete, http.MethodOptions,
	}
}
