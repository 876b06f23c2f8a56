// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"crypto/tls"
	"errors"
	"net/http"
	"time"

	"golang.org/x/net/http2"
	"k8s.io/klog/v2"

	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/dialer"
)

// DialerFactory makes the dialer of a cluster. The caller closes it.
type DialerFactory func(c *cluster.Cluster, purpose dialer.Purpose) (dialer.Dialer, error)

const (
	// idleTimeout closes unused connections. A watch or a probe keeps its connection in use.
	idleTimeout = 10 * time.Minute
	// maxResponseHeader is what a kube-apiserver accepts in the header of a request, and far more
	// than it sends. net/http's default is 10 MiB for each request in flight.
	maxResponseHeader = 1 << 20
	// receiveWindow limits how much of an answer the gateway holds for a client that does not read
	// it. net/http's default is 4 MiB for each request. Over a tunnel with a round-trip time of 50
	// ms, this limits a request to 20 MiB/s.
	receiveWindow = 1 << 20
	// streamWindow is the same for a long-running request, of which there are many at a time: 2.5
	// MiB/s with a round-trip time of 50 ms. A window belongs to a connection, so these requests have
	// a connection of their own.
	streamWindow = 128 << 10
)

// transports reach one version of a cluster. They are immutable, except for the connections of
// their dialers.
type transports struct {
	requests, streams, upgrades http.RoundTripper
	// elsewhere is for the gateway's own requests, through another replica. It is nil if there is no
	// Forwarder, and for clusters that need no agent.
	elsewhere http.RoundTripper
	// dialers are one for requests and streams, one for upgrades, and one for elsewhere.
	dialers []dialer.Dialer
	http    []*http.Transport
	// closeCredential, if set, ends the plugin that provides the credential.
	closeCredential func()
}

// dialLimits are the limits of the connections to a cluster.
type dialLimits struct {
	// timeout is a connector's.
	timeout time.Duration
	// liveness replaces that of connections through a tunnel, if it is set.
	liveness liveness
}

func newTransports(c *cluster.Cluster, factory DialerFactory, f Forwarder, limits dialLimits, m *clusterMetrics, gate dialGate, logger klog.Logger) (t *transports, err error) {
	t = &transports{}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.close())
			t = nil
		}
	}()
	auth := newAuthenticator(c, logger)
	alive := livenessOf(c, limits.liveness)
	t.closeCredential = auth.close
	for _, purpose := range []dialer.Purpose{dialer.ForRequests, dialer.ForUpgrades} {
		d, err := factory(c, purpose)
		if err != nil {
			return t, err
		}
		t.dialers = append(t.dialers, d)
		connect := func() (*connector, error) {
			conn := &connector{cluster: c, dial: d.DialContext, timeout: limits.timeout, liveness: alive, metrics: m, gate: gate, perRequest: purpose == dialer.ForUpgrades}
			return conn, conn.authenticate(auth)
		}
		if purpose == dialer.ForUpgrades {
			if t.upgrades, err = t.addUpgrades(connect, auth); err != nil {
				return t, err
			}
			continue
		}
		if t.requests, err = t.addHTTP2(connect, auth, receiveWindow); err != nil {
			return t, err
		}
		if t.streams, err = t.addHTTP2(connect, auth, streamWindow); err != nil {
			return t, err
		}
	}
	if f != nil && c.Route == cluster.RouteTunnel {
		d := f.Dialer(c.Name)
		t.dialers = append(t.dialers, d)
		t.elsewhere, err = t.addHTTP2(func() (*connector, error) {
			conn := &connector{cluster: c, dial: d.DialContext, timeout: limits.timeout, liveness: alive, metrics: m, gate: gate}
			return conn, conn.authenticate(auth)
		}, auth, receiveWindow)
	}
	return t, err
}

// addUpgrades returns a RoundTripper that speaks HTTP/1.1.
func (t *transports) addUpgrades(connect func() (*connector, error), auth authenticator) (http.RoundTripper, error) {
	conn, err := connect()
	if err != nil {
		return nil, err
	}
	plain := newHTTPTransport(conn)
	// A refused upgrade leaves a usable connection, perhaps through an agent that is about to
	// stop. Each upgrade dials anew instead, because the dialer knows which agents are.
	plain.MaxIdleConnsPerHost = -1
	t.http = append(t.http, plain)
	return auth.wrap(plain), nil
}

// addHTTP2 returns a RoundTripper that speaks HTTP/2 if the cluster does, and accepts up to window
// bytes of each answer before they are read.
func (t *transports) addHTTP2(connect func() (*connector, error), auth authenticator, window int) (http.RoundTripper, error) {
	conn, err := connect()
	if err != nil {
		return nil, err
	}
	plain := newHTTPTransport(conn)
	if err := enableHTTP2(plain, conn, window); err != nil {
		return nil, err
	}
	t.http = append(t.http, plain)
	return auth.wrap(&firstConnection{next: plain, open: &conn.open}), nil
}

// authenticate sets the connector's TLS configuration, and its part of the cluster's credential.
func (c *connector) authenticate(auth authenticator) (err error) {
	if c.tls, err = c.cluster.TLSConfig(); err != nil {
		return err
	}
	if auth.clientCertificate != nil {
		c.tls.GetClientCertificate = func(info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			cert, err := auth.clientCertificate(info.Context())
			if err == nil && cert == nil {
				cert = &tls.Certificate{} // crypto/tls then sends no certificate
			}
			return cert, err
		}
	}
	if auth.track != nil {
		c.dial = auth.track(c.dial)
	}
	return nil
}

// newHTTPTransport returns a transport for HTTP/1.1. It sets the protocols in conn.tls.
func newHTTPTransport(conn *connector) *http.Transport {
	t := &http.Transport{
		DialTLSContext: conn.dialTLS,
		// Compression is between the client and the cluster.
		DisableCompression: true,
		IdleConnTimeout:    idleTimeout,
		Protocols:          &http.Protocols{},
		WriteBufferSize:    16 << 10,
		ReadBufferSize:     16 << 10,

		MaxResponseHeaderBytes: maxResponseHeader,
	}
	t.Protocols.SetHTTP1(true)
	conn.tls.NextProtos = []string{"http/1.1"}
	return t
}

// enableHTTP2 makes a transport prefer HTTP/2.
func enableHTTP2(t *http.Transport, conn *connector, window int) error {
	t.Protocols.SetHTTP2(true)
	t.ForceAttemptHTTP2 = true
	t.HTTP2 = &http.HTTP2Config{SendPingTimeout: conn.liveness.pingAfter, PingTimeout: conn.liveness.pingTimeout, MaxReceiveBufferPerStream: window}
	t.MaxIdleConnsPerHost = 64 // for an endpoint that only speaks HTTP/1.1
	// The HTTP/2 client of x/net, which client-go uses too. Unlike net/http's own (Go 1.26), it
	// does not send a request again after a PROTOCOL_ERROR: that does not mean that the request was
	// not processed, and a write must not be done twice.
	h2, err := http2.ConfigureTransports(t) //nolint:staticcheck // deprecated in favor of net/http
	if err != nil {
		return err
	}
	h2.MaxHeaderListSize = maxResponseHeader //nolint:staticcheck // the same
	conn.closeIdle = t.CloseIdleConnections
	conn.tls.NextProtos = []string{"h2", "http/1.1"}
	return nil
}

// close closes all connections at once, including those in use.
func (t *transports) close() error {
	if t.closeCredential != nil {
		t.closeCredential()
	}
	var errs []error
	for _, d := range t.dialers {
		errs = append(errs, d.Close())
	}
	// After the dialers: to close a connection, a transport sends a message first, and would wait
	// for a peer that has stopped reading.
	for _, h := range t.http {
		h.CloseIdleConnections()
	}
	return errors.Join(errs...)
}
