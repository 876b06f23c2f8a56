// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/execplugin"
)

// authority issues certificates.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
	pem  []byte
}

// pair is a certificate and its key, in PEM.
type pair struct {
	cert, key []byte
	notAfter  time.Time
}

func newAuthority(t testing.TB, name string) *authority {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert: cert, key: key, pem: encode("CERTIFICATE", der)}
}

// issue signs a certificate for both ends of a connection. The names are DNS names; the first is
// the common name too.
func (a *authority) issue(t testing.TB, key crypto.Signer, names ...string) pair {
	t.Helper()
	notAfter := time.Now().Add(30 * time.Minute).Truncate(time.Second).UTC()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: notAfter,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pair{cert: encode("CERTIFICATE", der), key: encode("PRIVATE KEY", keyDER), notAfter: notAfter}
}

func newKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newRSAKey(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// data is a Secret's data. Empty values are keys that are there and empty.
type data map[string]string

// secretOf is a Secret with a credential type, a route's endpoint type ("" for none) and data.
func secretOf(credential v1alpha1.CredentialType, endpoint v1alpha1.EndpointType, d data) *corev1.Secret {
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "clusters", Name: "east", UID: "5b2f", ResourceVersion: "41",
			CreationTimestamp: metav1.NewTime(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)),
			Labels:            map[string]string{v1alpha1.LabelCredentialType: string(credential)},
		},
		Data: map[string][]byte{},
	}
	if endpoint != "" {
		secret.Labels[v1alpha1.LabelEndpointType] = string(endpoint)
	}
	for key, value := range d {
		secret.Data[key] = []byte(value)
	}
	return secret
}

// tokenSecret is a valid direct cluster with a token; d is put on top.
func tokenSecret(d data) *corev1.Secret {
	secret := secretOf(v1alpha1.CredentialTypeServiceAccountToken, "", data{"endpoint": "https://10.0.0.1:6443", "token": "sekret-token-0123456789"})
	for key, value := range d {
		secret.Data[key] = []byte(value)
	}
	return secret
}

func jwt(claims string) string {
	enc := base64.RawURLEncoding.EncodeToString
	return fmt.Sprintf("%s.%s.%s", enc([]byte(`{"alg":"none"}`)), enc([]byte(claims)), enc([]byte("signature")))
}

// pluginsOf returns the definition of one plugin, aws, with the parameters cluster and region.
func pluginsOf(t testing.TB, program, option string) *execplugin.Plugins {
	t.Helper()
	plugins, err := execplugin.Parse([]byte(`
plugins:
- name: aws
  command: ` + program + `
  args: [token, ` + option + `=$(cluster)]
  env: [{name: REGION, value: $(region)}]
  parameters: [{name: cluster}, {name: region, default: eu}]
`))
	if err != nil {
		t.Fatal(err)
	}
	return plugins
}
