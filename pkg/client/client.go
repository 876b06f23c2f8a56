// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package client is for Go programs that use managed clusters through the gateway. It converts a
// rest.Config for the hub, or for the gateway's own endpoint, to one for a cluster. Everything that
// uses a rest.Config (client-go's clients, informers, exec and port-forward, controller-runtime)
// then works with that cluster, and with the credential for the hub.
package client

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"k8s.io/client-go/rest"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// ProxyPath returns the path prefix on the hub for a cluster's API server. Append a path on the
// cluster to it.
func ProxyPath(cluster string) string {
	return v1alpha1.ProxyPath(cluster)
}

// ForCluster returns a copy of a configuration for the hub that reaches a cluster through the hub.
// The configuration can also be one for the gateway's own endpoint. Its Host can have a path.
func ForCluster(hub *rest.Config, cluster string) (*rest.Config, error) {
	base, err := baseURL(hub, cluster)
	if err != nil {
		return nil, err
	}
	config := rest.CopyConfig(hub)
	config.Host = base.String()
	// These fields are for one API group of the hub.
	config.APIPath = ""
	config.GroupVersion = nil
	return config, nil
}

// baseURL returns the URL on the hub for a cluster's API server.
func baseURL(hub *rest.Config, cluster string) (*url.URL, error) {
	if faults := v1alpha1.ValidateClusterName(cluster); len(faults) > 0 {
		return nil, fmt.Errorf("invalid cluster name %q: %s", cluster, faults[0])
	}
	base, _, err := rest.DefaultServerUrlFor(hub)
	if err != nil {
		return nil, fmt.Errorf("invalid address of the hub %q: %w", hub.Host, err)
	}
	base.Path = strings.TrimSuffix(base.Path, "/") + ProxyPath(cluster)
	base.RawPath = ""
	return base, nil
}

// RoundTripper sends requests for a cluster through the hub. It is for programs that use HTTP and
// any URL for a cluster. Only the path and the query of a request's URL matter. It is safe for
// concurrent use.
type RoundTripper struct {
	base *url.URL
	next http.RoundTripper
}

var _ http.RoundTripper = (*RoundTripper)(nil)

// NewRoundTripper returns a RoundTripper that uses the credential and the transport of the hub's
// configuration.
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

// WrappedRoundTripper returns the underlying transport, which upgrades need
// (k8s.io/apimachinery/pkg/util/net.RoundTripperWrapper).
func (rt *RoundTripper) WrappedRoundTripper() http.RoundTripper { return rt.next }
