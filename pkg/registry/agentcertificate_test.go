// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/utils/ptr"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// signed records what was asked for, and answers with it.
type signed struct {
	cluster  string
	usage    v1alpha1.AgentCertificateUsage
	key      any
	lifetime time.Duration
	err      error
}

func (s *signed) Sign(cluster string, usage v1alpha1.AgentCertificateUsage, key any, lifetime time.Duration) (chain, bundle []byte, err error) {
	s.cluster, s.usage, s.key, s.lifetime = cluster, usage, key, lifetime
	return []byte("chain of " + cluster), []byte("bundle"), s.err
}

// signingRequest returns a certificate signing request in PEM.
func signingRequest(t *testing.T, name string, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func newKeys(t *testing.T) map[string]crypto.Signer {
	t.Helper()
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	large, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]crypto.Signer{"ECDSA": curve, "Ed25519": edwards, "RSA": large}
}

func TestAgentCertificate(t *testing.T) {
	t.Parallel()
	for name, key := range newKeys(t) {
		s := &signed{}
		request := &v1alpha1.AgentCertificate{Spec: v1alpha1.AgentCertificateSpec{Request: signingRequest(t, "edge", key), ExpirationSeconds: ptr.To[int64](90)}}
		answer, err := NewAgentCertificateREST(s).Create(t.Context(), "edge", request, nil, nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got := answer.(*v1alpha1.AgentCertificate)
		if string(got.Status.Certificate) != "chain of edge" || string(got.Status.CABundle) != "bundle" || got.Name != "edge" {
			t.Errorf("%s: the answer is %+v", name, got)
		}
		if s.cluster != "edge" || s.usage != v1alpha1.AgentCertificateForAgent || s.lifetime != 90*time.Second || !key.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(s.key) {
			t.Errorf("%s: it was asked for %+v", name, s)
		}
	}
}

// TestAgentCertificateRefused shows that a request is refused with its fault, and that nothing is
// signed.
func TestAgentCertificateRefused(t *testing.T) {
	t.Parallel()
	keys := newKeys(t)
	good := signingRequest(t, "edge", keys["ECDSA"])
	small, err := rsa.GenerateKey(rand.Reader, 1024) //nolint:gosec // the key is to be refused
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(good)
	tampered := bytes.Clone(block.Bytes)
	tampered[len(tampered)-1] ^= 1
	for _, test := range []struct {
		name, cluster string
		change        func(*v1alpha1.AgentCertificate)
		want          string
	}{
		{"no request", "edge", func(a *v1alpha1.AgentCertificate) { a.Spec.Request = nil }, "must be one certificate signing request in PEM"},
		{"two requests", "edge", func(a *v1alpha1.AgentCertificate) { a.Spec.Request = append(bytes.Clone(good), good...) }, "must be one certificate signing request"},
		{"a certificate", "edge", func(a *v1alpha1.AgentCertificate) {
			a.Spec.Request = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: block.Bytes})
		}, "must be one certificate signing request"},
		{"garbage", "edge", func(a *v1alpha1.AgentCertificate) {
			a.Spec.Request = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: []byte("x")})
		}, "must be a certificate signing request"},
		{"another one's signature", "edge", func(a *v1alpha1.AgentCertificate) {
			a.Spec.Request = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: tampered})
		}, "must be signed with its own key"},
		{"another cluster", "edge", func(a *v1alpha1.AgentCertificate) { a.Spec.Request = signingRequest(t, "west", keys["ECDSA"]) }, `is for the common name "west", and the certificate would be for "edge"`},
		{"a small key", "edge", func(a *v1alpha1.AgentCertificate) { a.Spec.Request = signingRequest(t, "edge", small) }, "has an RSA key of 1024 bits"},
		{"a name that no cluster can have", "Edge_1", func(a *v1alpha1.AgentCertificate) { a.Spec.Request = signingRequest(t, "", keys["ECDSA"]) }, "metadata.name"},
		{"another usage", "edge", func(a *v1alpha1.AgentCertificate) { a.Spec.Usage = "Replica" }, `supported values: "Agent", "Invitation"`},
		{"a lifetime of nothing", "edge", func(a *v1alpha1.AgentCertificate) { a.Spec.ExpirationSeconds = ptr.To[int64](0) }, "expirationSeconds"},
		{"an endless lifetime", "edge", func(a *v1alpha1.AgentCertificate) { a.Spec.ExpirationSeconds = ptr.To[int64](1 << 62) }, "expirationSeconds"},
		{"the name of another object", "edge", func(a *v1alpha1.AgentCertificate) { a.Name = "west" }, "is not the name in the URL"},
	} {
		s := &signed{}
		request := &v1alpha1.AgentCertificate{Spec: v1alpha1.AgentCertificateSpec{Request: good}}
		test.change(request)
		_, err := NewAgentCertificateREST(s).Create(t.Context(), test.cluster, request, nil, nil)
		if err == nil || !strings.Contains(err.Error(), test.want) || !apierrors.IsInvalid(err) && !apierrors.IsBadRequest(err) {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
		if s.key != nil {
			t.Errorf("%s: it was signed", test.name)
		}
	}
	request := &v1alpha1.AgentCertificate{Spec: v1alpha1.AgentCertificateSpec{Request: good}}
	if _, err := NewAgentCertificateREST(&signed{err: ErrNoAuthority}).Create(t.Context(), "edge", request, nil, nil); !apierrors.IsServiceUnavailable(err) {
		t.Errorf("without a CA: %v", err)
	}
	denied := errors.New("denied")
	if _, err := NewAgentCertificateREST(&signed{err: denied}).Create(t.Context(), "edge", request, nil, nil); !apierrors.IsInternalError(err) {
		t.Errorf("with a broken CA: %v", err)
	}
}
