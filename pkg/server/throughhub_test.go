// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"k8s.io/apiserver/pkg/authentication/authenticatorfactory"
	"k8s.io/apiserver/pkg/authentication/request/headerrequest"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"

	"github.com/oam-dev/cluster-gateway/pkg/proxy"
)

// TestThroughHub checks that only a connection with the front proxy's certificate counts as the
// hub's, whatever headers a client sends.
func TestThroughHub(t *testing.T) {
	ca, caKey := newCertificate(t, "front-proxy-ca", nil, nil)
	otherCA, otherKey := newCertificate(t, "front-proxy-ca", nil, nil)
	frontProxy, _ := newCertificate(t, "front-proxy", ca, caKey)
	anotherName, _ := newCertificate(t, "joe", ca, caKey)
	forged, _ := newCertificate(t, "front-proxy", otherCA, otherKey)
	content, err := dynamiccertificates.NewStaticCAContent("test", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw}))
	if err != nil {
		t.Fatal(err)
	}
	config := &authenticatorfactory.RequestHeaderConfig{
		CAContentProvider: content, AllowedClientNames: headerrequest.StaticStringSlice{"front-proxy"},
	}
	for name, test := range map[string]struct {
		config *authenticatorfactory.RequestHeaderConfig
		state  *tls.ConnectionState
		want   bool
	}{
		"the front proxy":                   {config, &tls.ConnectionState{PeerCertificates: []*x509.Certificate{frontProxy}}, true},
		"another name of the same CA":       {config, &tls.ConnectionState{PeerCertificates: []*x509.Certificate{anotherName}}, false},
		"another CA":                        {config, &tls.ConnectionState{PeerCertificates: []*x509.Certificate{forged}}, false},
		"no certificate":                    {config, &tls.ConnectionState{}, false},
		"no TLS":                            {config, nil, false},
		"a gateway that has no front proxy": {nil, &tls.ConnectionState{PeerCertificates: []*x509.Certificate{frontProxy}}, false},
	} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.TLS = test.state
		r.Header.Set("X-Remote-User", "joe")
		var got bool
		withThroughHub(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			got = proxy.ThroughHub(r.Context())
		}), test.config).ServeHTTP(httptest.NewRecorder(), r)
		if got != test.want {
			t.Errorf("%s: got %v, want %v", name, got, test.want)
		}
	}
}

// newCertificate returns a client certificate, or a CA if no issuer is given.
func newCertificate(t *testing.T, name string, issuer *x509.Certificate, issuerKey *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true,
	}
	if issuer == nil {
		template.IsCA, template.KeyUsage = true, x509.KeyUsageCertSign
		issuer, issuerKey = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, &key.PublicKey, issuerKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}
