// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package pki_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/oam-dev/cluster-gateway/pkg/pki"
	"github.com/oam-dev/cluster-gateway/pkg/tunnel"
)

const namespace = "cluster-gateway-system"

func authority(t *testing.T) *pki.Authority {
	t.Helper()
	a, err := pki.NewAuthority(0)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func leaf(t *testing.T, certPEM, keyPEM []byte) ([]*x509.Certificate, tls.Certificate) {
	t.Helper()
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	certs, err := pki.ParseCertificates(certPEM)
	if err != nil {
		t.Fatal(err)
	}
	return certs, pair
}

// verify verifies a chain as a peer that trusts the roots.
func verify(certs []*x509.Certificate, roots *x509.CertPool, usage x509.ExtKeyUsage, host string) error {
	intermediates := x509.NewCertPool()
	for _, c := range certs[1:] {
		intermediates.AddCert(c)
	}
	_, err := certs[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{usage}, DNSName: host,
	})
	return err
}

func TestIssueAgent(t *testing.T) {
	t.Parallel()
	a := authority(t)
	certPEM, keyPEM, err := a.IssueAgent("edge-1", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	certs, _ := leaf(t, certPEM, keyPEM)
	if name, err := tunnel.ClusterOf(certs[0]); err != nil || name != "edge-1" {
		t.Errorf("the tunnel reads the cluster %q, %v", name, err)
	}
	if err := verify(certs, a.Pool(), x509.ExtKeyUsageClientAuth, ""); err != nil {
		t.Error(err)
	}
	if err := verify(certs, a.Pool(), x509.ExtKeyUsageServerAuth, ""); err == nil {
		t.Error("the certificate of an agent is a valid serving certificate")
	}
	if got := time.Until(certs[0].NotAfter); got > time.Hour || got < 50*time.Minute {
		t.Errorf("it expires in %s", got)
	}
	if time.Since(certs[0].NotBefore) < 5*time.Minute {
		t.Errorf("it is valid from %s: a peer whose clock is behind would refuse it", certs[0].NotBefore)
	}
	if _, _, err := a.IssueAgent("", time.Hour); err == nil {
		t.Error("a certificate without a cluster was issued")
	}
}

func TestIssueServing(t *testing.T) {
	t.Parallel()
	a := authority(t)
	certPEM, keyPEM, err := a.IssueServing([]string{"tunnel.example.com", "192.0.2.7", "2001:db8::1"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	certs, _ := leaf(t, certPEM, keyPEM)
	for _, host := range []string{"tunnel.example.com", "192.0.2.7", "2001:db8::1"} {
		if err := verify(certs, a.Pool(), x509.ExtKeyUsageServerAuth, host); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
	if err := verify(certs, a.Pool(), x509.ExtKeyUsageClientAuth, ""); err == nil {
		t.Error("a serving certificate is a valid certificate of an agent")
	}
	if _, _, err := a.IssueServing(nil, 0); err == nil {
		t.Error("a certificate without a host was issued")
	}
}

func TestCertificatesExpireNoLaterThanTheirCA(t *testing.T) {
	t.Parallel()
	a, err := pki.NewAuthority(time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	certPEM, keyPEM, err := a.IssueAgent("edge-1", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	certs, _ := leaf(t, certPEM, keyPEM)
	if !certs[0].NotAfter.Equal(a.Certificate().NotAfter) {
		t.Errorf("it expires at %s, the CA at %s", certs[0].NotAfter, a.Certificate().NotAfter)
	}
}

// After the CA is replaced, peers that trust the old bundle and peers that trust the new one accept
// both old and new certificates.
func TestRotated(t *testing.T) {
	t.Parallel()
	old := authority(t)
	next, err := old.Rotated(0)
	if err != nil {
		t.Fatal(err)
	}
	third, err := next.Rotated(0)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name        string
		by, trusted *pki.Authority
		wantRefused bool
	}{
		{name: "old certificate, old trust", by: old, trusted: old},
		{name: "new certificate, new trust", by: next, trusted: next},
		{name: "new certificate, old trust", by: next, trusted: old},
		{name: "old certificate, new trust", by: old, trusted: next},
		{name: "third certificate, new trust", by: third, trusted: next},
		{name: "old certificate, trust of the third CA", by: old, trusted: third},
		{name: "third certificate, old trust", by: third, trusted: old, wantRefused: true},
	} {
		certPEM, keyPEM, err := c.by.IssueServing([]string{"tunnel"}, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		certs, _ := leaf(t, certPEM, keyPEM)
		err = verify(certs, c.trusted.Pool(), x509.ExtKeyUsageServerAuth, "tunnel")
		if (err != nil) != c.wantRefused {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	certs, err := pki.ParseCertificates(third.Bundle())
	if err != nil || len(certs) != 3 || !certs[0].Equal(third.Certificate()) || !certs[2].Equal(old.Certificate()) {
		t.Errorf("the bundle holds %d certificates, %v", len(certs), err)
	}
}

func TestEnsureReturnsOneCAToAll(t *testing.T) {
	t.Parallel()
	secrets := fake.NewClientset().CoreV1().Secrets(namespace)
	got := make([]*pki.Authority, 8)
	var wg sync.WaitGroup
	for i := range got {
		wg.Go(func() {
			a, err := pki.Ensure(t.Context(), secrets, pki.Options{})
			if err != nil {
				t.Error(err)
				return
			}
			got[i] = a
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	for _, a := range got {
		if !a.Certificate().Equal(got[0].Certificate()) || !bytes.Equal(a.Bundle(), got[0].Bundle()) {
			t.Errorf("%s is not %s", a, got[0])
		}
	}
	secret, err := secrets.Get(t.Context(), pki.CASecret, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if secret.Type != corev1.SecretTypeTLS || len(secret.Labels) != 1 {
		t.Errorf("type %s, labels %v", secret.Type, secret.Labels)
	}
}

func TestLoad(t *testing.T) {
	t.Parallel()
	secrets := fake.NewClientset().CoreV1().Secrets(namespace)
	if _, err := pki.Load(t.Context(), secrets); !apierrors.IsNotFound(err) {
		t.Errorf("without a Secret: %v", err)
	}
	a := authority(t)
	good, err := a.Secret()
	if err != nil {
		t.Fatal(err)
	}
	other, err := authority(t).Secret()
	if err != nil {
		t.Fatal(err)
	}
	agentCert, agentKey, err := a.IssueAgent("edge-1", 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		change func(data map[string][]byte)
		want   string // "": accepted
	}{
		{"unchanged", func(map[string][]byte) {}, ""},
		{"without a bundle", func(d map[string][]byte) { delete(d, "ca.crt") }, ""},
		{"no certificate", func(d map[string][]byte) { delete(d, "tls.crt") }, "tls.crt"},
		{"no key", func(d map[string][]byte) { delete(d, "tls.key") }, "tls.key"},
		{"another CA's key", func(d map[string][]byte) { d["tls.key"] = other.Data["tls.key"] }, "does not belong to"},
		{"not a CA", func(d map[string][]byte) { d["tls.crt"], d["tls.key"] = agentCert, agentKey }, "is not a CA certificate"},
		{"no certificate in the bundle", func(d map[string][]byte) { d["ca.crt"] = []byte("x") }, "ca.crt"},
	} {
		secret := good.DeepCopy()
		c.change(secret.Data)
		got, err := pki.FromSecret(secret)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.want == "" && !bytes.Equal(got.Bundle(), a.Bundle()):
			t.Errorf("%s: the bundle differs", c.name)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestRotate(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	secrets := fake.NewClientset().CoreV1().Secrets(namespace)
	first, err := pki.Ensure(ctx, secrets, pki.Options{})
	if err != nil {
		t.Fatal(err)
	}
	next, err := pki.Rotate(ctx, secrets, first, pki.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if next.Certificate().Equal(first.Certificate()) {
		t.Fatal("it is the same CA")
	}
	// A process that still has the first CA gets the second. It does not create a third.
	late, err := pki.Rotate(ctx, secrets, first, pki.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if !late.Certificate().Equal(next.Certificate()) {
		t.Errorf("got %s, want %s", late, next)
	}
	secret, err := secrets.Get(ctx, pki.CASecret, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	secret.Labels = nil
	if _, err := secrets.Update(ctx, secret, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := pki.Rotate(ctx, secrets, next, pki.Options{}); !errors.Is(err, pki.ErrNotManaged) {
		t.Errorf("a CA that the user provides: %v", err)
	}
}

func TestKeyIsNotPrinted(t *testing.T) {
	t.Parallel()
	a := authority(t)
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%d"} {
		for _, v := range []any{a, *a} {
			if text := fmt.Sprintf(format, v); strings.Contains(text, "PrivateKey") || strings.Contains(text, "D:") {
				t.Errorf("%s shows the key: %s", format, text)
			}
		}
	}
}

func TestRenewAt(t *testing.T) {
	t.Parallel()
	a := authority(t)
	cert := a.Certificate()
	made := pki.IssuedAt(cert)
	at := float64(pki.RenewAt(cert).Sub(made)) / float64(cert.NotAfter.Sub(made))
	if at < 0.75 || at > 0.8 {
		t.Errorf("renewed after %.3f of its lifetime", at)
	}
}
