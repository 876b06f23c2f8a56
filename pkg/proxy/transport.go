// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"maps"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	utilnet "k8s.io/apimachinery/pkg/util/net"

	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/dialer"
)

// DialerFactory makes the dialer of a cluster; the caller closes it.
type DialerFactory func(c *cluster.Cluster, purpose dialer.Purpose) (dialer.Dialer, error)

const (
	// pingAfter and pingTimeout find a connection whose other end vanished: as client-go does (HTTP2_READ_IDLE_TIMEOUT_SECONDS
	// and HTTP2_PING_TIMEOUT_SECONDS, k8s.io/apimachinery/pkg/util/net).
	pingAfter   = 30 * time.Second
	pingTimeout = 15 * time.Second
	// idleTimeout closes connections that nobody uses; a watch or a probe keeps them.
	idleTimeout = 10 * time.Minute
	// maxResponseHeader is what a kube-apiserver takes of a request's header, and far more than it sends. By default it would be
	// 10 MiB for each of the requests in flight.
	maxResponseHeader = 1 << 20
	// receiveWindow is how much of an answer the gateway holds at most for a client that does not read it. By default it would be
	// 4 MiB for each request, and for watches there is no limit to these. Over a tunnel with a round-trip time of 50 ms it
	// leaves 20 MiB/s to each request.
	receiveWindow = 1 << 20
)

// transports is what one version of a cluster is reached with. It is immutable but for its dialers' connections.
type transports struct {
	requests, upgrades http.RoundTripper
	dialers            []dialer.Dialer
	idle               []*http.Transport
}

func newTransports(c *cluster.Cluster, factory DialerFactory, dialTimeout time.Duration, s *series) (t *transports, err error) {
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
	for _, purpose := range []dialer.Purpose{dialer.ForRequests, dialer.ForUpgrades} {
		d, err := factory(c, purpose)
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
		establish := &establisher{cluster: c, dial: d.DialContext, tls: config, timeout: dialTimeout, series: s}
		if auth.track != nil {
			if establish.dial, err = auth.track(d.DialContext); err != nil {
				return t, err
			}
		}
		plain := newHTTPTransport(establish, purpose)
		t.idle = append(t.idle, plain)
		if purpose == dialer.ForRequests {
			t.requests = auth.wrap(&firstConnection{next: plain, open: &establish.open})
		} else {
			t.upgrades = auth.wrap(plain)
		}
	}
	return t, nil
}

// newHTTPTransport completes establish.tls with the protocols of the use.
func newHTTPTransport(establish *establisher, purpose dialer.Purpose) *http.Transport {
	t := &http.Transport{
		DialTLSContext: establish.dialTLS,
		// What a client accepts is between it and the cluster.
		DisableCompression: true,
		IdleConnTimeout:    idleTimeout,
		Protocols:          &http.Protocols{},
		WriteBufferSize:    16 << 10,
		ReadBufferSize:     16 << 10,

		MaxResponseHeaderBytes: maxResponseHeader,
	}
	t.Protocols.SetHTTP1(true)
	establish.tls.NextProtos = []string{"http/1.1"}
	if purpose == dialer.ForUpgrades {
		// One that was refused leaves a connection, perhaps by an agent that is about to end: each begins with a dial, which knows.
		t.MaxIdleConnsPerHost = -1
	} else {
		t.Protocols.SetHTTP2(true)
		t.ForceAttemptHTTP2 = true
		t.HTTP2 = &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout, MaxReceiveBufferPerStream: receiveWindow}
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
	dial    dialer.DialFunc
	tls     *tls.Config
	// timeout bounds both steps together: http.Transport does not pass on the deadline of the request that wants the
	// connection, nor its end.
	timeout time.Duration
	series  *series
	// open counts the connections over which TLS stands.
	open atomic.Int64
}

func (e *establisher) dialTLS(ctx context.Context, network, address string) (net.Conn, error) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, e.timeout)
	defer cancel()
	conn, err := e.connect(ctx, network, address)
	stage, result := "", "success"
	if err != nil {
		result = "failure"
		var de *dialer.Error
		if errors.As(err, &de) {
			stage = string(de.Stage)
		}
	}
	e.series.dialled(string(e.cluster.Route), stage, result, time.Since(began))
	if err != nil {
		return nil, err
	}
	return conn, nil
}

func (e *establisher) connect(ctx context.Context, network, address string) (*tls.Conn, error) {
	raw, err := e.dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	counted := e.counted(raw)
	conn := tls.Client(counted, e.tls)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = counted.Close() // the handshake's error is the one that matters
		return nil, &dialer.Error{Cluster: e.cluster.Name, Stage: dialer.StageTLS, Address: address, Err: err}
	}
	counted.ready()
	return conn, nil
}

func (e *establisher) counted(c net.Conn) *countedConn {
	e.series.connected(string(e.cluster.Route), 1)
	return &countedConn{Conn: c, owner: e}
}

// countedConn is a connection of an establisher.
type countedConn struct {
	net.Conn
	owner  *establisher
	usable atomic.Bool
	once   sync.Once
}

// ready says that TLS stands. Call it once, before Close can be called.
func (c *countedConn) ready() {
	c.usable.Store(true)
	c.owner.open.Add(1)
}

func (c *countedConn) Close() error {
	c.once.Do(func() {
		if c.usable.Load() {
			c.owner.open.Add(-1)
		}
		c.owner.series.connected(string(c.owner.cluster.Route), -1)
	})
	return c.Conn.Close()
}

// authenticator adds a cluster's credential to requests and handshakes. X.509 pairs are in Cluster.TLSConfig already.
type authenticator struct {
	wrap func(http.RoundTripper) http.RoundTripper
	// clientCertificate and track are nil unless a plugin may give out certificates; track makes a dial function whose
	// connections are closed when the certificate is another: they would go on to present the former one.
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
	// A shallow copy with a header map of its own: RoundTrippers must not change the request, and the rest of it is not
	// changed.
	out := *req
	out.Header = make(http.Header, len(req.Header)+1)
	maps.Copy(out.Header, req.Header)
	out.Header["Authorization"] = b.value
	return b.next.RoundTrip(&out)
}

// WrappedRoundTripper implements utilnet.RoundTripperWrapper.
func (b *bearer) WrappedRoundTripper() http.RoundTripper { return b.next }
