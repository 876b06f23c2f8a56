// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"crypto/x509"
	"errors"
	"net"
	"os"
	"testing"
	"time"
)

func TestIssue(t *testing.T) {
	ca, err := NewCA("ca")
	if err != nil {
		t.Fatal(err)
	}
	other, err := NewCA("ca")
	if err != nil {
		t.Fatal(err)
	}
	server := CertOptions{CN: "server", DNSNames: []string{"name"}, IPs: []net.IP{net.ParseIP(loopback)}, Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	expired := CertOptions{CN: "old", DNSNames: []string{"name"}, NotAfter: time.Now().Add(-time.Minute)}
	for _, test := range []struct {
		name   string
		issued CertOptions
		verify x509.VerifyOptions
		want   bool
	}{
		{"name", server, x509.VerifyOptions{Roots: ca.Pool(), DNSName: "name"}, true},
		{"address", server, x509.VerifyOptions{Roots: ca.Pool(), DNSName: loopback}, true},
		{"other name", server, x509.VerifyOptions{Roots: ca.Pool(), DNSName: "else"}, false},
		{"another CA of the same name", server, x509.VerifyOptions{Roots: other.Pool(), DNSName: "name"}, false},
		{"server as client", server, x509.VerifyOptions{Roots: ca.Pool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, false},
		{"expired", expired, x509.VerifyOptions{Roots: ca.Pool(), DNSName: "name"}, false},
		{"before it expired", expired, x509.VerifyOptions{Roots: ca.Pool(), DNSName: "name", CurrentTime: time.Now().Add(-2 * time.Minute)}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			pair, err := ca.Issue(test.issued)
			if err != nil {
				t.Fatal(err)
			}
			certificate, err := pair.TLS()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := certificate.Leaf.Verify(test.verify); (err == nil) != test.want {
				t.Errorf("verifying: %v, want valid: %v", err, test.want)
			}
		})
	}
}

func TestWriteFiles(t *testing.T) {
	ca, err := NewCA("ca")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.Issue(CertOptions{CN: "leaf"})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile, err := pair.WriteFiles(dir, "leaf")
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(keyFile); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key's file: %v, %v", info.Mode(), err)
	}
	if data, err := os.ReadFile(certFile); err != nil || string(data) != string(pair.CertPEM) {
		t.Errorf("the certificate's file: %v", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Errorf("files left over: %v, %v", entries, errors.Join(err))
	}
}
