// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// certLifetime is the default lifetime of certificates. It is longer than any lab runs.
const certLifetime = 30 * 24 * time.Hour

// clockSkew is how far in the past certificates become valid.
const clockSkew = time.Hour

// CA is a certificate authority. It is safe for concurrent use.
type CA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pair KeyPair
}

// KeyPair is a certificate and its private key, both in PEM.
type KeyPair struct {
	CertPEM []byte
	KeyPEM  []byte
}

// CertOptions describes a certificate to issue.
type CertOptions struct {
	// CN and Orgs are the subject. For Kubernetes, they are a user and its groups.
	CN   string
	Orgs []string
	// DNSNames and IPs are the names and addresses of a server.
	DNSNames []string
	IPs      []net.IP
	// Usages are the extended key usages. Empty means client and server.
	Usages []x509.ExtKeyUsage
	// NotBefore is when the certificate becomes valid. Zero means now, or NotAfter if that is in the
	// past. It is valid a little earlier, because clocks differ.
	NotBefore time.Time
	// NotAfter is when the certificate expires. It may be in the past. Zero means 30 days from now.
	NotAfter time.Time
}

// NewCA creates a certificate authority with a new ECDSA P-256 key.
func NewCA(cn string) (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate the key of CA %q: %w", cn, err)
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: cn},
		NotBefore:             time.Now().Add(-clockSkew),
		NotAfter:              time.Now().Add(certLifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	cert, err := sign(template, template, key, key)
	if err != nil {
		return nil, fmt.Errorf("sign CA %q: %w", cn, err)
	}
	pair, err := encode(cert, key)
	if err != nil {
		return nil, err
	}
	return &CA{cert: cert, key: key, pair: *pair}, nil
}

// ParseCA returns an existing certificate authority. If there are several certificates, the first
// one is the CA's own.
func ParseCA(certPEM, keyPEM []byte) (*CA, error) {
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("read a CA: %w", err)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || !pair.Leaf.IsCA {
		return nil, fmt.Errorf("read a CA: %q has no ECDSA key", pair.Leaf.Subject)
	}
	encoded, err := encode(pair.Leaf, key)
	if err != nil {
		return nil, err
	}
	return &CA{cert: pair.Leaf, key: key, pair: *encoded}, nil
}

// CertPEM returns the CA's certificate.
func (ca *CA) CertPEM() []byte { return ca.pair.CertPEM }

// KeyPEM returns the CA's private key.
func (ca *CA) KeyPEM() []byte { return ca.pair.KeyPEM }

// Pool returns a new pool that contains only this CA.
func (ca *CA) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	return pool
}

// WriteFile writes the CA's certificate (not its key) to path.
func (ca *CA) WriteFile(path string) error {
	return os.WriteFile(path, ca.pair.CertPEM, 0o644)
}

// Issue creates a key and signs a certificate for it.
func (ca *CA) Issue(o CertOptions) (*KeyPair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate the key of %q: %w", o.CN, err)
	}
	notAfter := o.NotAfter
	if notAfter.IsZero() {
		notAfter = time.Now().Add(certLifetime)
	}
	notBefore := o.NotBefore
	if notBefore.IsZero() {
		notBefore = time.Now()
	}
	if notAfter.Before(notBefore) {
		notBefore = notAfter
	}
	usages := o.Usages
	if len(usages) == 0 {
		usages = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: o.CN, Organization: o.Orgs},
		DNSNames:    o.DNSNames,
		IPAddresses: o.IPs,
		NotBefore:   notBefore.Add(-clockSkew),
		NotAfter:    notAfter,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: usages,
	}
	cert, err := sign(template, ca.cert, key, ca.key)
	if err != nil {
		return nil, fmt.Errorf("sign the certificate of %q: %w", o.CN, err)
	}
	return encode(cert, key)
}

// WriteFiles writes the pair to dir as NAME.crt and NAME.key. Each file is replaced atomically, so
// that a program that watches it never reads an incomplete one.
func (p *KeyPair) WriteFiles(dir, name string) (certFile, keyFile string, err error) {
	certFile, keyFile = filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	if err := replaceFile(certFile, p.CertPEM, 0o644); err != nil {
		return "", "", err
	}
	if err := replaceFile(keyFile, p.KeyPEM, 0o600); err != nil {
		return "", "", err
	}
	return certFile, keyFile, nil
}

// TLS returns the pair for crypto/tls.
func (p *KeyPair) TLS() (tls.Certificate, error) {
	return tls.X509KeyPair(p.CertPEM, p.KeyPEM)
}

func sign(template, parent *x509.Certificate, key, parentKey *ecdsa.PrivateKey) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func encode(cert *x509.Certificate, key *ecdsa.PrivateKey) (*KeyPair, error) {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode a private key: %w", err)
	}
	return &KeyPair{
		CertPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}),
		KeyPEM:  pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}),
	}, nil
}

func replaceFile(path string, data []byte, mode os.FileMode) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // fails after the rename, as expected
	if _, err := tmp.Write(data); err != nil {
		tmp.Close()
		return err
	}
	if err := tmp.Chmod(mode); err != nil {
		tmp.Close()
		return err
	}
	if err := tmp.Close(); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}
