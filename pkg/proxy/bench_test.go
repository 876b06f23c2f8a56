// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/endpoints/filters"
	"k8s.io/apiserver/pkg/endpoints/request"
)

// sink is a ResponseWriter that discards everything: the server in front of the handler is not
// measured.
type sink struct{ header http.Header }

func (s *sink) Header() http.Header         { return s.header }
func (s *sink) Write(p []byte) (int, error) { return len(p), nil }
func (s *sink) WriteHeader(int)             {}
func (s *sink) Flush()                      {}

// BenchmarkProxyGET compares a GET through the Handler with one through a bare ReverseProxy, to the
// same HTTP/2 server in the same run, and reports the ratio of their times. Run it with -benchmem
// for the allocations.
func BenchmarkProxyGET(b *testing.B) {
	answer := bytes.Repeat([]byte("x"), 1000)
	s := newAPIServer(b, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(answer) })
	g := newGateway(b, nil)
	g.set(s.secret("a"))

	endpoint, err := url.Parse(s.URL)
	if err != nil {
		b.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	bare := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(endpoint)
			r.Out.Header.Set("Authorization", "Bearer "+testToken)
		},
		Transport: transport,
		ErrorLog:  nolog,
	}
	info := &request.RequestInfoFactory{APIPrefixes: sets.NewString("api", "apis"), GrouplessAPIPrefixes: sets.NewString("api")}

	const path = "/api/v1/namespaces/default"
	measure := func(b *testing.B, handler http.Handler, uri string) time.Duration {
		req := httptest.NewRequest(http.MethodGet, uri, http.NoBody)
		req.Header.Set("Accept", "application/json")
		req.Header.Set("User-Agent", "kubectl/v1.37.2")
		req.Header.Set("Authorization", "Bearer of-the-caller")
		handler.ServeHTTP(&sink{http.Header{}}, req.Clone(b.Context()))
		b.ReportAllocs()
		b.ResetTimer()
		for b.Loop() {
			handler.ServeHTTP(&sink{http.Header{}}, req.Clone(b.Context()))
		}
		return b.Elapsed() / time.Duration(b.N)
	}
	var reference time.Duration
	b.Run("bare", func(b *testing.B) { reference = measure(b, filters.WithRequestInfo(bare, info), path) })
	b.Run("gateway", func(b *testing.B) {
		took := measure(b, filters.WithRequestInfo(g.handler, info), basePath+"a/proxy"+path)
		if reference > 0 {
			b.ReportMetric(float64(took)/float64(reference), "×bare")
		}
	})
}
