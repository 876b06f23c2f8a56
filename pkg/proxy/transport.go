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
	// pingAfter and pingTimeout detect a connection whose other end has vanished. They are
	// client-go's (HTTP2_READ_IDLE_TIMEOUT_SECONDS and HTTP2_PING_TIMEOUT_SECONDS,
	// k8s.io/apimachinery/pkg/util/net).
	pingAfter   = 30 * time.Second
	pingTimeout = 15 * time.Second
	// idleTimeout closes unused connections. A watch or a probe keeps its connection in use.
	idleTimeout = 10 * time.Minute
	// maxResponseHeader is what a kube-apiserver accepts in the header of a request, and far more
	// than it sends. net/http's default is 10 MiB for each request in flight.
	maxResponseHeader = 1 << 20
	// receiveWindow limits how much of an answer the gateway holds for a client that does not read
	// it. net/http's default is 4 MiB for each request, and the number of watches is large. Over a
	// tunnel with a round-trip time of 50 ms, this limits a request to 20 MiB/s.
	receiveWindow = 1 << 20
)

// transports reach one version of a cluster. They are immutable, except for the connections of
// their dialers.
type transports struct {
	requests, upgrades http.RoundTripper
	dialers            []dialer.Dialer
	http               []*http.Transport
	// closeCredential, if set, ends the plugin that provides the credential.
	closeCredential func()
}

func newTransports(c *cluster.Cluster, factory DialerFactory, dialTimeout time.Duration, m *clusterMetrics, gate dialGate, logger klog.Logger) (t *transports, err error) {
	t = &transports{}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.close())
			t = nil
		}
	}()
	auth := newAuthenticator(c, logger)
	t.closeCredential = auth.close
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
			config.GetClientCertificate = func(info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
				cert, err := auth.clientCertificate(info.Context())
				if err == nil && cert == nil {
					cert = &tls.Certificate{} // crypto/tls then sends no certificate
				}
				return cert, err
			}
		}
		conn := &connector{
			cluster: c, dial: d.DialContext, tls: config, timeout: dialTimeout, metrics: m,
			gate: gate, perRequest: purpose == dialer.ForUpgrades,
		}
		if auth.track != nil {
			conn.dial = auth.track(d.DialContext)
		}
		plain, err := newHTTPTransport(conn, purpose)
		if err != nil {
			return t, err
		}
		t.http = append(t.http, plain)
		if purpose == dialer.ForRequests {
			t.requests = auth.wrap(&firstConnection{next: plain, open: &conn.open})
		} else {
			t.upgrades = auth.wrap(plain)
		}
	}
	return t, nil
}

// newHTTPTransport returns a transport for the purpose. It sets the protocols in conn.tls.
func newHTTPTransport(conn *connector, purpose dialer.Purpose) (*http.Transport, error) {
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
	if purpose == dialer.ForUpgrades {
		// A refused upgrade leaves a usable connection, perhaps through an agent that is about to
		// stop. Each upgrade dials anew instead, because the dialer knows which agents are.
		t.MaxIdleConnsPerHost = -1
		return t, nil
	}
	t.Protocols.SetHTTP2(true)
	t.ForceAttemptHTTP2 = true
	t.HTTP2 = &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout, MaxReceiveBufferPerStream: receiveWindow}
	t.MaxIdleConnsPerHost = 64 // for an endpoint that only speaks HTTP/1.1
	// The HTTP/2 client of x/net, which client-go uses too. Unlike net/http's own (Go 1.26), it
	// does not send a request again after a PROTOCOL_ERROR: that does not mean that the request was
	// not processed, and a write must not be done twice.
	h2, err := http2.ConfigureTransports(t) //nolint:staticcheck // deprecated in favor of net/http
	if err != nil {
		return nil, err
	}
	h2.MaxHeaderListSize = maxResponseHeader //nolint:staticcheck // the same
	conn.tls.NextProtos = []string{"h2", "http/1.1"}
	return t, nil
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
