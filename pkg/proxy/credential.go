// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"crypto/tls"
	"maps"
	"net/http"

	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/klog/v2"

	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/dialer"
)

// authenticator adds a cluster's credential to requests and to TLS handshakes. It has nothing to do
// for an X.509 pair, which is in Cluster.TLSConfig already.
type authenticator struct {
	wrap func(http.RoundTripper) http.RoundTripper
	// clientCertificate and track are nil unless a plugin may provide certificates. track makes a
	// dial function whose connections are closed when the certificate changes, because they would
	// continue to use the previous one.
	clientCertificate func(context.Context) (*tls.Certificate, error)
	track             func(dialer.DialFunc) dialer.DialFunc
	// close, if set, must be called after use.
	close func()
}

func newAuthenticator(c *cluster.Cluster, logger klog.Logger) authenticator {
	if token := c.Credential.BearerToken(); token != "" {
		value := []string{"Bearer " + token}
		return authenticator{wrap: func(rt http.RoundTripper) http.RoundTripper { return &bearer{value: value, next: rt} }}
	}
	if plugin := c.Credential.Plugin(); plugin != nil {
		return newPluginAuthenticator(c, plugin, logger)
	}
	return authenticator{wrap: func(rt http.RoundTripper) http.RoundTripper { return rt }}
}

// bearer sets the Authorization header of each request.
type bearer struct {
	value []string
	next  http.RoundTripper
}

var _ utilnet.RoundTripperWrapper = (*bearer)(nil)

func (b *bearer) RoundTrip(req *http.Request) (*http.Response, error) {
	return b.next.RoundTrip(withAuthorization(req, b.value))
}

// withAuthorization returns a copy of the request with this Authorization header, or without one if
// value is nil. A RoundTripper must not change the request. A shallow copy with a header map of its
// own is enough, because nothing else changes.
func withAuthorization(req *http.Request, value []string) *http.Request {
	out := *req
	out.Header = make(http.Header, len(req.Header)+1)
	maps.Copy(out.Header, req.Header)
	if value == nil {
		delete(out.Header, "Authorization")
	} else {
		out.Header["Authorization"] = value
	}
	return &out
}

// WrappedRoundTripper implements utilnet.RoundTripperWrapper.
func (b *bearer) WrappedRoundTripper() http.RoundTripper { return b.next }
