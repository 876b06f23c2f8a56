// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"slices"
	"time"
)

// Authority is a CA with its private key. It is immutable and safe for concurrent use. Its key is
// never printed.
type Authority struct {
	// reveal returns the key. A function hides it from fmt, which does not call methods on
	// unexported fields.
	reveal func() crypto.Signer
	// chain starts with the CA's certificate. Cross-certificates, which lead from it to older
	// roots, follow.
	chain []*x509.Certificate
	// bundle lists all trusted CAs.
	bundle []*x509.Certificate
	// userProvided is true if the CA comes from a Secret that the gateway does not manage.
	userProvided bool
	// agents, if set, issues the certificates of agents instead of this CA.
	agents *Authority
	// refuseTunnelCA is true if certificates of agents are accepted from this CA only, and no longer
	// from the tunnel's CA. It is set for a CA of agents only.
	refuseTunnelCA bool
}

// NewAuthority creates a CA with a new key. A lifetime of 0 means DefaultCALifetime.
func NewAuthority(lifetime time.Duration) (*Authority, error) { return createAuthority(lifetime, nil) }

// createAuthority creates a CA for certificates of some usages. None means all.
func createAuthority(lifetime time.Duration, usages []x509.ExtKeyUsage) (*Authority, error) {
	key, _, cert, err := newCA(lifetime, usages)
	if err != nil {
		return nil, err
	}
	return newAuthority(key, []*x509.Certificate{cert}, []*x509.Certificate{cert}), nil
}

// newCA returns a new key, a self-signed certificate for it, and the template of the certificate.
func newCA(lifetime time.Duration, usages []x509.ExtKeyUsage) (key *ecdsa.PrivateKey, template, cert *x509.Certificate, err error) {
	if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, nil, nil, err
	}
	if template, err = caTemplate(lifetime); err != nil {
		return nil, nil, nil, err
	}
	template.ExtKeyUsage = usages
	cert, err = sign(template, template, key.Public(), key)
	return key, template, cert, err
}

func newAuthority(key crypto.Signer, chain, bundle []*x509.Certificate) *Authority {
	return &Authority{reveal: func() crypto.Signer { return key }, chain: chain, bundle: bundle}
}

func caTemplate(lifetime time.Duration) (*x509.Certificate, error) {
	if lifetime <= 0 {
		lifetime = DefaultCALifetime
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		// Each CA has a name of its own, so that a verifier never tries a chain with the wrong CA.
		Subject:               pkix.Name{CommonName: fmt.Sprintf("cluster-gateway CA %x", serial.Bytes()[:4])},
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLen:            1, // its successor, which it cross-signs
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
	}
	setTimes(template, time.Now(), lifetime)
	return template, nil
}

// newSerial returns 127 random bits. The first one is set, so that the bytes have no leading zeros.
func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 126))
	if err != nil {
		return nil, err
	}
	return n.SetBit(n, 126, 1), nil
}

func sign(template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// Certificate returns the certificate of the CA. The caller must not change it.
func (a *Authority) Certificate() *x509.Certificate { return a.chain[0] }

// Bundle returns all CAs to trust, in PEM: this CA first, then its predecessors that have not
// expired.
func (a *Authority) Bundle() []byte { return encodeCerts(a.bundle) }

// Certificates returns the certificates of the bundle. The caller must not change them.
func (a *Authority) Certificates() []*x509.Certificate { return slices.Clone(a.bundle) }

// Pool returns the bundle as a new pool.
func (a *Authority) Pool() *x509.CertPool { return newPool(a.bundle) }

func newPool(certs []*x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, cert := range certs {
		pool.AddCert(cert)
	}
	return pool
}

// Rotated creates the successor of this CA. Its bundle holds the new CA and the CAs of this bundle
// that have not expired. A peer that trusts either CA accepts the certificates that the successor
// issues. A lifetime of 0 means DefaultCALifetime.
func (a *Authority) Rotated(lifetime time.Duration) (*Authority, error) {
	old := a.Certificate()
	if old.MaxPathLenZero {
		return nil, fmt.Errorf("the CA %q must not sign another CA (its path length is 0): replacing it would disconnect all agents", old.Subject.CommonName)
	}
	key, template, cert, err := newCA(lifetime, old.ExtKeyUsage)
	if err != nil {
		return nil, err
	}
	// The cross-certificate has the same name and key as the new CA, and is signed by the old one.
	cross := *template
	cross.MaxPathLen, cross.MaxPathLenZero = 0, true
	cross.NotAfter = old.NotAfter
	if cross.SerialNumber, err = newSerial(); err != nil {
		return nil, err
	}
	crossed, err := sign(&cross, old, key.Public(), a.reveal())
	if err != nil {
		return nil, err
	}
	bundle := []*x509.Certificate{cert}
	for _, trusted := range a.bundle {
		if time.Now().Before(trusted.NotAfter) {
			bundle = append(bundle, trusted)
		}
	}
	next := newAuthority(key, []*x509.Certificate{cert, crossed}, bundle)
	next.refuseTunnelCA = a.refuseTunnelCA
	return next, nil
}

// String returns the name of the CA and when it expires. It does not show the key.
func (a *Authority) String() string {
	return fmt.Sprintf("%s, expires %s", a.Certificate().Subject.CommonName, a.Certificate().NotAfter.UTC().Format(time.RFC3339))
}
