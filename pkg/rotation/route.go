// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package rotation

import (
	"context"
	"crypto/x509"
	"net"
	"net/http"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/dialer"
)

// Route reaches managed clusters for renewals.
type Route struct {
	// Dialer makes a dialer for one renewal, which is closed afterwards.
	Dialer func(c *cluster.Cluster) (dialer.Dialer, error)
	// Shared returns the RoundTripper with the credential that the gateway presents for callers. It
	// is used only for clusters that have no other one.
	Shared func(name string) http.RoundTripper
}

// connection is the client of one managed cluster, for one renewal. Close it after use.
type connection struct {
	kube  kubernetes.Interface
	dyn   dynamic.Interface
	close func()

	mu    sync.Mutex
	chain []*x509.Certificate
}

// open returns a client of the cluster that presents the best credential for renewals: the one for
// maintenance unless it has expired or does not exist.
func (r Route) open(c *cluster.Cluster, now time.Time) (*connection, error) {
	if !usable(c.Maintenance(), now) {
		return r.connectShared(c)
	}
	return r.connect(c)
}

// usable is whether there is a token that has not expired.
func usable(credential cluster.Credential, now time.Time) bool {
	expiry, known := credential.Expiry()
	return credential.BearerToken() != "" && (!known || now.Before(expiry))
}

// connect returns a client of the cluster that presents its credential for maintenance.
func (r Route) connect(c *cluster.Cluster) (*connection, error) {
	tlsConfig, err := c.TLSConfig()
	if err != nil {
		return nil, err
	}
	d, err := r.Dialer(c)
	if err != nil {
		return nil, err
	}
	// A transport of its own, so that no request of a caller can be sent with this credential.
	transport := &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return d.DialContext(ctx, network, address)
		},
		TLSClientConfig: tlsConfig, TLSHandshakeTimeout: attemptTimeout, ForceAttemptHTTP2: true,
		DisableCompression: true, MaxResponseHeaderBytes: 64 << 10,
	}
	conn, err := newConnection(&rest.Config{Host: c.Endpoint.String()}, &withToken{next: transport, token: c.Maintenance().BearerToken()})
	if err != nil {
		_ = d.Close() // it has no connections
		return nil, err
	}
	conn.close = func() {
		transport.CloseIdleConnections()
		_ = d.Close() // the renewal is over, and its outcome does not depend on how connections are closed
	}
	return conn, nil
}

// connectShared returns a client of the cluster that presents the credential for callers.
func (r Route) connectShared(c *cluster.Cluster) (*connection, error) {
	return newConnection(&rest.Config{Host: "https://" + c.Name}, r.Shared(c.Name))
}

func newConnection(config *rest.Config, transport http.RoundTripper) (*connection, error) {
	conn := &connection{close: func() {}}
	client := &http.Client{
		Transport:     &recorder{next: bounded{transport}, conn: conn},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       attemptTimeout + time.Second, // the context of the renewal ends first
	}
	config.QPS, config.WarningHandler = -1, rest.NoWarnings{}
	config.ContentType = runtime.ContentTypeJSON // every API server supports JSON
	var err error
	if conn.kube, err = kubernetes.NewForConfigAndClient(config, client); err != nil {
		return nil, err
	}
	conn.dyn, err = dynamic.NewForConfigAndClient(config, client)
	return conn, err
}

// serverChain returns the certificates that the API server presented. It is empty if they are not
// known.
func (c *connection) serverChain() []*x509.Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.chain
}

// recorder keeps the certificates of the API server.
type recorder struct {
	next http.RoundTripper
	conn *connection
}

// RoundTrip implements http.RoundTripper.
func (r *recorder) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := r.next.RoundTrip(req)
	if err == nil && resp.TLS != nil {
		r.conn.mu.Lock()
		r.conn.chain = resp.TLS.PeerCertificates
		r.conn.mu.Unlock()
	}
	return resp, err
}

// WrappedRoundTripper returns the RoundTripper that sends the requests.
func (r *recorder) WrappedRoundTripper() http.RoundTripper { return r.next }

// withToken sends requests with a token.
type withToken struct {
	next  http.RoundTripper
	token string
}

// RoundTrip implements http.RoundTripper.
func (t *withToken) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.Header.Set("Authorization", "Bearer "+t.token)
	return t.next.RoundTrip(req)
}

// WrappedRoundTripper returns the RoundTripper that sends the requests.
func (t *withToken) WrappedRoundTripper() http.RoundTripper { return t.next }

// maxAnswer bounds the size of an answer. A managed cluster may answer anything, and the largest
// legitimate answers are a Secret or a ConfigMap of 1 MiB.
const maxAnswer = 2 << 20

// bounded bounds the size of answers.
type bounded struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (b bounded) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := b.next.RoundTrip(req)
	if err == nil {
		resp.Body = http.MaxBytesReader(nil, resp.Body, maxAnswer)
	}
	return resp, err
}

// WrappedRoundTripper returns the RoundTripper that sends the requests.
func (b bounded) WrappedRoundTripper() http.RoundTripper { return b.next }
