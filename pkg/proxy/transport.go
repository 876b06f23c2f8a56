// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	utilnet "k8s.io/apimachinery/pkg/util/net"
	clientauthentication "k8s.io/client-go/pkg/apis/clientauthentication"
	"k8s.io/client-go/plugin/pkg/client/auth/exec"
	"k8s.io/client-go/transport"

	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/dialer"
)

// Use says what a connection is for.
type Use int

// The uses of a connection.
const (
	// ForRequests: HTTP/2, shared by all ordinary requests and watches.
	ForRequests Use = iota
	// ForUpgrades: HTTP/1.1, one for each exec, attach or port-forward.
	ForUpgrades
)

// DialerFactory makes the dialer of a cluster; the caller closes it.
type DialerFactory func(c *cluster.Cluster, use Use) (dialer.Dialer, error)

const (
	// pingAfter and pingTimeout find a connection whose other end vanished: as client-go does (HTTP2_READ_IDLE_TIMEOUT_SECONDS
	// and HTTP2_PING_TIMEOUT_SECONDS, k8s.io/apimachinery/pkg/util/net).
	pingAfter   = 30 * time.Second
	pingTimeout = 15 * time.Second
	// idleTimeout closes connections that nobody uses; a watch or a probe keeps them.
	idleTimeout = 10 * time.Minute
)

// transports is what one version of a cluster is reached with. It is immutable but for its dialers' connections.
type transports struct {
	requests, upgrades http.RoundTripper
	dialers            []dialer.Dialer
	idle               []*http.Transport
}

func newTransports(c *cluster.Cluster, factory DialerFactory, dialTimeout time.Duration, m *Metrics) (t *transports, err error) {
	t = &transports{}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.close())
			t = nil
		}
	}()
	auth, err := newAuthenticator(c)
	if err != nil {
		return t, err
	}
	for _, use := range []Use{ForRequests, ForUpgrades} {
		d, err := factory(c, use)
		if err != nil {
			return t, err
		}
		t.dialers = append(t.dialers, d)
		config, err := c.TLSConfig()
		if err != nil {
			return t, err
		}
		if auth.clientCertificate != nil {
			config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				cert, err := auth.clientCertificate()
				if err == nil && cert == nil {
					cert = &tls.Certificate{} // crypto/tls: no certificate is sent
				}
				return cert, err
			}
		}
		establish := &establisher{cluster: c, dialer: d, tls: config, timeout: dialTimeout, metrics: m}
		plain := newHTTPTransport(establish, use)
		t.idle = append(t.idle, plain)
		if use == ForRequests {
			t.requests = auth.wrap(plain)
		} else {
			t.upgrades = auth.wrap(plain)
		}
	}
	return t, nil
}

// newHTTPTransport completes establish.tls with the protocols of the use.
func newHTTPTransport(establish *establisher, use Use) *http.Transport {
	t := &http.Transport{
		DialTLSContext: establish.dialTLS,
		// What a client accepts is between it and the cluster.
		DisableCompression: true,
		IdleConnTimeout:    idleTimeout,
		Protocols:          &http.Protocols{},
		WriteBufferSize:    16 << 10,
		ReadBufferSize:     16 << 10,
	}
	t.Protocols.SetHTTP1(true)
	establish.tls.NextProtos = []string{"http/1.1"}
	if use == ForRequests {
		t.Protocols.SetHTTP2(true)
		t.ForceAttemptHTTP2 = true
		t.HTTP2 = &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout}
		t.MaxIdleConnsPerHost = 64 // for an endpoint that speaks only HTTP/1.1
		establish.tls.NextProtos = []string{"h2", "http/1.1"}
	}
	return t
}

// close ends all connections at once, also those that are in use.
func (t *transports) close() error {
	var errs []error
	for _, d := range t.dialers {
		errs = append(errs, d.Close())
	}
	// After the dialers: the transports' own way to close a connection says goodbye first, and would wait for a peer that
	// has stopped reading.
	for _, i := range t.idle {
		i.CloseIdleConnections()
	}
	return errors.Join(errs...)
}

// establisher makes connections to one API server: dial, then TLS.
type establisher struct {
	cluster *cluster.Cluster
	dialer  dialer.Dialer
	tls     *tls.Config
	// timeout bounds both steps together: http.Transport does not pass on the deadline of the request that wants the
	// connection.
	timeout time.Duration
	metrics *Metrics
}

func (e *establisher) dialTLS(ctx context.Context, network, address string) (net.Conn, error) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, e.timeout)
	defer cancel()
	conn, err := e.dial(ctx, network, address)
	stage, result := "", "success"
	var de *dialer.Error
	if errors.As(err, &de) {
		stage, result = string(de.Stage), "failure"
	}
	e.metrics.dialled(e.cluster.Name, string(e.cluster.Route), stage, result, time.Since(began))
	if err != nil {
		return nil, err
	}
	return conn, nil
}

func (e *establisher) dial(ctx context.Context, network, address string) (*tls.Conn, error) {
	raw, err := e.dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(e.counted(raw), e.tls)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = conn.NetConn().Close() // the handshake's error is the one that matters
		return nil, &dialer.Error{Cluster: e.cluster.Name, Stage: dialer.StageTLS, Address: address, Err: err}
	}
	return conn, nil
}

func (e *establisher) counted(c net.Conn) net.Conn {
	gauge := e.metrics.connections.WithLabelValues(e.cluster.Name, string(e.cluster.Route))
	gauge.Inc()
	return &countedConn{Conn: c, closed: sync.OnceFunc(gauge.Dec)}
}

type countedConn struct {
	net.Conn
	closed func()
}

func (c *countedConn) Close() error {
	c.closed()
	return c.Conn.Close()
}

// authenticator adds a cluster's credential to requests and handshakes. X.509 pairs are in Cluster.TLSConfig already.
type authenticator struct {
	wrap              func(http.RoundTripper) http.RoundTripper
	clientCertificate func() (*tls.Certificate, error)
}

func newAuthenticator(c *cluster.Cluster) (authenticator, error) {
	none := authenticator{wrap: func(rt http.RoundTripper) http.RoundTripper { return rt }}
	if token := c.Credential.BearerToken(); token != "" {
		value := "Bearer " + token
		return authenticator{wrap: func(rt http.RoundTripper) http.RoundTripper { return &bearer{value: value, next: rt} }}, nil
	}
	plugin := c.Credential.Exec()
	if plugin == nil {
		return none, nil
	}
	e, err := exec.GetAuthenticator(plugin, &clientauthentication.Cluster{
		Server: c.Endpoint.String(), TLSServerName: c.ServerName, InsecureSkipTLSVerify: c.Insecure, CertificateAuthorityData: c.CAData,
	})
	if err != nil {
		return none, fmt.Errorf("the exec credential plugin: %w", err)
	}
	var config transport.Config
	if err := e.UpdateTransportConfig(&config); err != nil {
		return none, fmt.Errorf("the exec credential plugin: %w", err)
	}
	a := authenticator{wrap: config.WrapTransport}
	if config.TLS.GetCertHolder != nil {
		a.clientCertificate = config.TLS.GetCertHolder.GetCert
	}
	return a, nil
}

// bearer sets the Authorization header of each request.
type bearer struct {
	value string
	next  http.RoundTripper
}

var _ utilnet.RoundTripperWrapper = (*bearer)(nil)

func (b *bearer) RoundTrip(req *http.Request) (*http.Response, error) {
	// A shallow copy with a header map of its own: RoundTrippers must not change the request, and the rest of it is not
	// changed.
	out := *req
	out.Header = make(http.Header, len(req.Header)+1)
	for name, values := range req.Header {
		out.Header[name] = slices.Clip(values)
	}
	out.Header["Authorization"] = []string{b.value}
	return b.next.RoundTrip(&out)
}

// WrappedRoundTripper implements utilnet.RoundTripperWrapper.
func (b *bearer) WrappedRoundTripper() http.RoundTripper { return b.next }
