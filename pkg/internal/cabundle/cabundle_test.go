// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package cabundle

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"
)

// newCA returns a CA certificate in PEM.
func newCA(t testing.TB) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<40))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial.Add(serial, big.NewInt(1)), Subject: pkix.Name{CommonName: "ca"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return block("CERTIFICATE", der)
}

func block(blockType string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: blockType, Bytes: der})
}

func TestParse(t *testing.T) {
	t.Parallel()
	a, b := newCA(t), newCA(t)
	withHeader := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Headers: map[string]string{"A": "b"}, Bytes: []byte("x")})
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for _, c := range []struct {
		name    string
		bundle  []byte
		certs   int
		skipped string
	}{
		{name: "empty"},
		{name: "no PEM", bundle: []byte("garbage")},
		{name: "two", bundle: join(a, b), certs: 2},
		{name: "text between", bundle: join([]byte("# first\n"), a, []byte("\n# second -----BEGIN \n"), b), certs: 2},
		{name: "malformed certificate", bundle: join(a, block("CERTIFICATE", []byte("x")), b), certs: 2, skipped: "1 of 3 PEM blocks cannot be used (block 2: x509: malformed certificate)"},
		{name: "truncated first", bundle: join(a[:len(a)/2], []byte("\n"), b), certs: 1, skipped: "1 of 2 PEM blocks cannot be used (block 1: it is truncated or malformed)"},
		{name: "truncated last", bundle: join(b, a[:len(a)/2]), certs: 1, skipped: "1 of 2 PEM blocks cannot be used (block 2: it is truncated or malformed)"},
		{name: "key", bundle: join(a, block("PRIVATE KEY", []byte("sekret"))), certs: 1, skipped: `1 of 2 PEM blocks cannot be used (block 2: its type is "PRIVATE KEY", not CERTIFICATE)`},
		{name: "headers", bundle: withHeader, skipped: "1 of 1 PEM blocks cannot be used (block 1: it has PEM headers)"},
		{
			name: "many", bundle: join(a, bytes.Repeat(block("X", nil), 1000)), certs: 1,
			skipped: `1000 of 1001 PEM blocks cannot be used (block 2: its type is "X", not CERTIFICATE; block 3: its type is "X", not CERTIFICATE; block 4: its type is "X", not CERTIFICATE; and 997 more)`,
		},
	} {
		certs, skipped := Parse(c.bundle)
		if len(certs) != c.certs || skipped.String() != c.skipped {
			t.Errorf("%s: %d certificates, skipped %q; want %d, %q", c.name, len(certs), skipped, c.certs, c.skipped)
		}
		samePool(t, c.name, c.bundle, certs)
	}
}

// samePool compares the certificates with those that kubectl and client-go use.
func samePool(t *testing.T, name string, bundle []byte, certs []*x509.Certificate) {
	t.Helper()
	got, want := x509.NewCertPool(), x509.NewCertPool()
	for _, cert := range certs {
		got.AddCert(cert)
	}
	if ok := want.AppendCertsFromPEM(bundle); ok != (len(certs) > 0) || !got.Equal(want) {
		t.Errorf("%s: AppendCertsFromPEM returns another result", name)
	}
}

// A certificate with a negative serial number is invalid, but does exist in the field.
func TestParseSkipsNegativeSerialNumber(t *testing.T) {
	t.Parallel()
	decoded, _ := pem.Decode(newCA(t))
	cert, err := x509.ParseCertificate(decoded.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	// The serial number is an INTEGER. The highest bit of its first byte is the sign.
	serial := append([]byte{2, byte(len(cert.SerialNumber.Bytes()))}, cert.SerialNumber.Bytes()...)
	at := bytes.Index(decoded.Bytes, serial)
	if at < 0 {
		t.Skip("the serial number starts with a zero byte")
	}
	decoded.Bytes[at+2] |= 0x80
	certs, skipped := Parse(append(newCA(t), pem.EncodeToMemory(decoded)...))
	if want := "1 of 2 PEM blocks cannot be used (block 2: x509: negative serial number)"; len(certs) != 1 || skipped.String() != want {
		t.Errorf("%d certificates, skipped %q, want %q", len(certs), skipped, want)
	}
}

func FuzzParse(f *testing.F) {
	ca := newCA(f)
	f.Add(ca)
	f.Add(append([]byte("x"), ca...))
	f.Add([]byte(strings.Repeat("-----BEGIN CERTIFICATE-----\n", 3)))
	f.Fuzz(func(t *testing.T, bundle []byte) {
		certs, skipped := Parse(bundle)
		samePool(t, "fuzz", bundle, certs)
		if len(skipped.String()) > 1024 {
			t.Errorf("a description of %d bytes", len(skipped.String()))
		}
	})
}
