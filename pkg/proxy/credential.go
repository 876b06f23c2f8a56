// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"crypto/tls"
	"maps"
	"net/http"

	utilnet "k8s.io/apimachinery/pkg/util/net"

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
	clientCertificate func() (*tls.Certificate, error)
	track             func(dialer.DialFunc) (dialer.DialFunc, error)
}

func newAuthenticator(c *cluster.Cluster) (authenticator, error) {
	if token := c.Credential.BearerToken(); token != "" {
		value := []string{"Bearer " + token}
		return authenticator{wrap: func(rt http.RoundTripper) http.RoundTripper { return &bearer{value: value, next: rt} }}, nil
	}
	if plugin := c.Credential.Exec(); plugin != nil {
		return newPluginAuthenticator(c, plugin)
	}
	return authenticator{wrap: func(rt http.RoundTripper) http.RoundTripper { return rt }}, nil
}

// bearer sets the Authorization header of each request.
type bearer struct {
	value []string
	next  http.RoundTripper
}

var _ utilnet.RoundTripperWrapper = (*bearer)(nil)

func (b *bearer) RoundTrip(req *http.Request) (*http.Response, error) {
	// A RoundTripper must not change the request. A shallow copy with a header map of its own is
	// enough, because nothing else changes.
	out := *req
	out.Header = make(http.Header, len(req.Header)+1)
	maps.Copy(out.Header, req.Header)
	out.Header["Authorization"] = b.value
	return b.next.RoundTrip(&out)
}

// WrappedRoundTripper implements utilnet.RoundTripperWrapper.
func (b *bearer) WrappedRoundTripper() http.RoundTripper { return b.next }
