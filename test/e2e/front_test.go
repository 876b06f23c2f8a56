// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/oam-dev/cluster-gateway/test/lab"
)

// front is a TLS server in front of a cluster's API server: another endpoint of the same cluster.
// Tests can observe it and replace its certificate. It listens where the gateway and an agent of
// the cluster can dial it.
type front struct {
	// url is the endpoint to register, including the prefix.
	url         string
	certificate atomic.Pointer[tls.Certificate]
	// opened counts all connections so far, open the current ones.
	opened, open atomic.Int64

	mu       sync.Mutex
	requests []string
}

// newFront starts a front with a certificate of ca. It is closed when the test ends.
func newFront(t *testing.T, c *lab.Cluster, ca *lab.CA, prefix string) *front {
	t.Helper()
	f := &front{}
	host := shared.lab.HostAddr(c)
	f.present(t, ca, host)

	config := c.RESTConfig()
	roots := c.CA().Pool()
	endpoint, err := url.Parse(config.Host)
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			raw := strings.TrimPrefix(r.In.URL.EscapedPath(), prefix)
			path, err := url.PathUnescape(raw)
			if err != nil { // cannot fail: it was unescaped before
				path = raw
			}
			r.Out.URL = &url.URL{Scheme: endpoint.Scheme, Host: endpoint.Host, Path: path, RawPath: raw, RawQuery: r.In.URL.RawQuery}
		},
		// HTTP/1.1 only: upgrades need it.
		Transport: &http.Transport{
			DialContext:     c.DialContext,
			TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}},
		},
		FlushInterval: -1,
		ErrorLog:      log.New(io.Discard, "", 0), // requests that the tests cancel
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		f.mu.Lock()
		f.requests = append(f.requests, req.RequestURI)
		f.mu.Unlock()
		if !strings.HasPrefix(req.URL.EscapedPath(), prefix+"/") {
			http.NotFound(w, req)
			return
		}
		proxy.ServeHTTP(w, req)
	}))
	if err := server.Listener.Close(); err != nil {
		t.Fatal(err)
	}
	if server.Listener, err = net.Listen("tcp", net.JoinHostPort(host, "0")); err != nil {
		t.Fatal(err)
	}
	server.EnableHTTP2 = true
	server.TLS = &tls.Config{
		MinVersion: tls.VersionTLS12,
		// Not GetCertificate: if the client sends no server name, httptest's own certificate would take
		// precedence.
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{*f.certificate.Load()}, NextProtos: []string{"h2", "http/1.1"}}, nil
		},
	}
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			f.opened.Add(1)
			f.open.Add(1)
		case http.StateClosed, http.StateHijacked:
			f.open.Add(-1)
		}
	}
	server.StartTLS()
	t.Cleanup(server.Close)
	f.url = "https://" + server.Listener.Addr().String() + prefix
	return f
}

// present uses a certificate of ca for new connections.
func (f *front) present(t *testing.T, ca *lab.CA, host string) {
	t.Helper()
	pair, err := ca.Issue(lab.CertOptions{CN: "front", IPs: []net.IP{net.ParseIP(host)}})
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := pair.TLS()
	if err != nil {
		t.Fatal(err)
	}
	f.certificate.Store(&certificate)
}

// seen returns the request URIs so far, in order, and clears them.
func (f *front) seen() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	requests := f.requests
	f.requests = nil
	return requests
}
