// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package client is for Go programs that reach managed clusters through the gateway: it turns a rest.Config of the hub, or of the
// gateway's own endpoint, into one of a cluster. Everything that is built on a rest.Config (client-go's clients, informers, exec and
// port-forward, controller-runtime) then works on that cluster, with the credential of the hub.
package client

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"k8s.io/client-go/rest"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// ProxyPath is the path of a cluster's API server on the hub: what follows it is a path on the cluster.
func ProxyPath(cluster string) string {
	return v1alpha1.ProxyPath(cluster)
}

// ForCluster returns a copy of a configuration for the hub that reaches a cluster through it. The hub's may also be one for the
// gateway's own endpoint, and its Host may have a path.
func ForCluster(hub *rest.Config, cluster string) (*rest.Config, error) {
	base, err := baseURL(hub, cluster)
	if err != nil {
		return nil, err
	}
	config := rest.CopyConfig(hub)
	config.Host = base.String()
	// These are of a client for one API group of the hub.
	config.APIPath = ""
	config.GroupVersion = nil
	return config, nil
}

// baseURL is where a cluster's API server is on the hub.
func baseURL(hub *rest.Config, cluster string) (*url.URL, error) {
	if faults := v1alpha1.ValidateClusterName(cluster); len(faults) > 0 {
		return nil, fmt.Errorf("%q is not the name of a cluster: %s", cluster, faults[0])
	}
	base, _, err := rest.DefaultServerUrlFor(hub)
	if err != nil {
		return nil, fmt.Errorf("the hub's address %q: %w", hub.Host, err)
	}
	base.Path = strings.TrimSuffix(base.Path, "/") + ProxyPath(cluster)
	base.RawPath = ""
	return base, nil
}

// RoundTripper sends requests that are meant for a cluster through the hub: for programs that speak HTTP and know a cluster by a URL
// of their own. Only the path and the query of a request's URL matter. It is safe for concurrent use.
type RoundTripper struct {
	base *url.URL
	next http.RoundTripper
}

var _ http.RoundTripper = (*RoundTripper)(nil)

// NewRoundTripper returns a RoundTripper with the hub's credential and transport, as hub says.
func NewRoundTripper(hub *rest.Config, cluster string) (*RoundTripper, error) {
	base, err := baseURL(hub, cluster)
	if err != nil {
		return nil, err
	}
	next, err := rest.TransportFor(hub)
	if err != nil {
		return nil, err
	}
	return &RoundTripper{base: base, next: next}, nil
}

// RoundTrip implements http.RoundTripper.
func (rt *RoundTripper) RoundTrip(req *http.Request) (*http.Response, error) {
	out := req.Clone(req.Context())
	out.Host = ""
	out.URL.Scheme, out.URL.Host, out.URL.User = rt.base.Scheme, rt.base.Host, nil
	escaped := strings.TrimPrefix(req.URL.EscapedPath(), "/")
	out.URL.Path = rt.base.Path + "/" + strings.TrimPrefix(req.URL.Path, "/")
	out.URL.RawPath = rt.base.EscapedPath() + "/" + escaped
	return rt.next.RoundTrip(out)
}

// WrappedRoundTripper lets upgrades find the transport below (k8s.io/apimachinery/pkg/util/net.RoundTripperWrapper).
func (rt *RoundTripper) WrappedRoundTripper() http.RoundTripper { return rt.next }
