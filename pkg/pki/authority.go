// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// Lives of what is made without being told how long it is to live.
const (
	// DefaultCALifetime is long: whoever trusts the CA by hand has to follow when it changes.
	DefaultCALifetime = 10 * 365 * 24 * time.Hour
	// DefaultServingLifetime is short: the gateway renews the pair by itself.
	DefaultServingLifetime = 90 * 24 * time.Hour
	// DefaultAgentLifetime is long enough for an agent whose certificate is renewed by hand.
	DefaultAgentLifetime = 365 * 24 * time.Hour
)

// clockSkew is how far in the past certificates begin, for peers whose clocks are behind.
const clockSkew = 5 * time.Minute

// Authority is a CA with its key. It is immutable, and can be used concurrently. Its key is never printed.
type Authority struct {
	// reveal hides the key from fmt, which does not call methods on unexported fields.
	reveal func() crypto.Signer
	chain  []*x509.Certificate // what signs, and after it the certificates that lead from it to other roots
	bundle []*x509.Certificate
	// foreign is whether it comes from a Secret that was not made here.
	foreign bool
}

// NewAuthority makes a CA that nobody has yet. A lifetime of 0 means DefaultCALifetime.
func NewAuthority(lifetime time.Duration) (*Authority, error) {
	key, _, cert, err := makeCA(lifetime)
	if err != nil {
		return nil, err
	}
	return newAuthority(key, []*x509.Certificate{cert}, []*x509.Certificate{cert}), nil
}

// makeCA returns a new key, the certificate that it signs for itself, and what that was made from.
func makeCA(lifetime time.Duration) (key *ecdsa.PrivateKey, template, cert *x509.Certificate, err error) {
	if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, nil, nil, err
	}
	if template, err = caTemplate(lifetime); err != nil {
		return nil, nil, nil, err
	}
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
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: serial,
		// Each CA has a name of its own, so that no chain is tried with the wrong one.
		Subject:               pkix.Name{CommonName: fmt.Sprintf("cluster-gateway CA %x", serial.Bytes()[:4])},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(lifetime),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLen:            1, // the next CA, cross-signed
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
	}, nil
}

// newSerial returns 127 random bits, of which the first is set: its bytes have no leading zeros.
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

// Certificate is what signs now. It must not be changed.
func (a *Authority) Certificate() *x509.Certificate { return a.chain[0] }

// Bundle is what is to be trusted, in PEM: this CA first, then those that it took over from and that have not ended.
func (a *Authority) Bundle() []byte { return encodeCerts(a.bundle) }

// Certificates are the bundle. They must not be changed.
func (a *Authority) Certificates() []*x509.Certificate { return slices.Clone(a.bundle) }

// Pool is the bundle. It is the caller's.
func (a *Authority) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	for _, cert := range a.bundle {
		pool.AddCert(cert)
	}
	return pool
}

// IssueAgent makes the certificate and key of a cluster's agents. A lifetime of 0 means DefaultAgentLifetime. Nothing outlives
// its CA.
func (a *Authority) IssueAgent(cluster string, lifetime time.Duration) (certPEM, keyPEM []byte, err error) {
	if cluster == "" {
		return nil, nil, errors.New("the certificate of an agent needs the name of its cluster")
	}
	if lifetime <= 0 {
		lifetime = DefaultAgentLifetime
	}
	return a.issue(&x509.Certificate{
		Subject:     pkix.Name{Organization: []string{v1alpha1.AgentOrganization}, CommonName: cluster},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, lifetime)
}

// IssueInvitation makes the certificate and key that a cluster enrols with, once. Nothing outlives its CA.
func (a *Authority) IssueInvitation(cluster string, lifetime time.Duration) (certPEM, keyPEM []byte, err error) {
	if cluster == "" || lifetime <= 0 {
		return nil, nil, errors.New("an invitation needs the name of its cluster and a lifetime")
	}
	return a.issue(&x509.Certificate{
		Subject:     pkix.Name{Organization: []string{v1alpha1.InvitationOrganization}, CommonName: cluster},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, lifetime)
}

// IssueServing makes a serving certificate and key for hosts, which are names and IP addresses. A lifetime of 0 means
// DefaultServingLifetime.
func (a *Authority) IssueServing(hosts []string, lifetime time.Duration) (certPEM, keyPEM []byte, err error) {
	if len(hosts) == 0 {
		return nil, nil, errors.New("a serving certificate needs a host")
	}
	if lifetime <= 0 {
		lifetime = DefaultServingLifetime
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "cluster-gateway"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, strings.TrimSuffix(host, "."))
		}
	}
	return a.issue(template, lifetime)
}

func (a *Authority) issue(template *x509.Certificate, lifetime time.Duration) (certPEM, keyPEM []byte, err error) {
	now, end := time.Now(), a.Certificate().NotAfter
	if !now.Before(end) {
		return nil, nil, fmt.Errorf("the CA %q ended at %s", a.Certificate().Subject.CommonName, end.UTC().Format(time.RFC3339))
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	if template.SerialNumber, err = newSerial(); err != nil {
		return nil, nil, err
	}
	template.NotBefore, template.NotAfter = now.Add(-clockSkew), now.Add(lifetime)
	if template.NotAfter.After(end) {
		template.NotAfter = end
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.BasicConstraintsValid = true
	cert, err := sign(template, a.Certificate(), key.Public(), a.reveal())
	if err != nil {
		return nil, nil, err
	}
	keyPEM, err = encodeKey(key)
	if err != nil {
		return nil, nil, err
	}
	// What leads from this CA to others that may be trusted instead; the CA itself, self-signed, leads nowhere.
	chain := []*x509.Certificate{cert}
	for _, link := range a.chain {
		if !bytes.Equal(link.RawIssuer, link.RawSubject) {
			chain = append(chain, link)
		}
	}
	return encodeCerts(chain), keyPEM, nil
}

// Rotated makes the CA that is to follow this one. Its bundle holds both (and whatever else this one's holds that has not ended); what
// it issues is accepted by who trusts either. A lifetime of 0 means DefaultCALifetime.
func (a *Authority) Rotated(lifetime time.Duration) (*Authority, error) {
	old := a.Certificate()
	if old.MaxPathLenZero {
		return nil, fmt.Errorf("the CA %q must not sign another CA (its path length is 0): it cannot be replaced without cutting agents off", old.Subject.CommonName)
	}
	key, template, cert, err := makeCA(lifetime)
	if err != nil {
		return nil, err
	}
	// The cross-certificate: the same name and key, signed by the old CA.
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
	return newAuthority(key, []*x509.Certificate{cert, crossed}, bundle), nil
}

// String names the CA. It does not show the key.
func (a *Authority) String() string {
	return fmt.Sprintf("Authority(%s, until %s)", a.Certificate().Subject.CommonName, a.Certificate().NotAfter.UTC().Format(time.RFC3339))
}

// RenewAt is when a certificate is to be renewed: after 80 % of its life, and up to 5 % of it earlier, by its serial
// number, so that those which were made together are not renewed together.
func RenewAt(cert *x509.Certificate) time.Time {
	jitter := new(big.Int).Mod(cert.SerialNumber, big.NewInt(1000)).Int64()
	return RenewBetween(madeAt(cert), cert.NotAfter, float64(jitter)/1000)
}

// Lifetime is how long a certificate that was made here was to live.
func Lifetime(cert *x509.Certificate) time.Duration { return cert.NotAfter.Sub(madeAt(cert)) }

// madeAt is the beginning of a certificate's life without what was added for peers whose clocks are behind.
func madeAt(cert *x509.Certificate) time.Time {
	if made := cert.NotBefore.Add(clockSkew); made.Before(cert.NotAfter) {
		return made
	}
	return cert.NotBefore
}

// RenewBetween is RenewAt for what is no certificate. The jitter lies between 0 and 1.
func RenewBetween(begin, end time.Time, jitter float64) time.Time {
	return begin.Add(time.Duration(float64(end.Sub(begin)) * (0.8 - 0.05*jitter)))
}

// ParseCertificates reads all certificates of a PEM file, and fails if there is none.
func ParseCertificates(text []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, errors.New("no certificate in PEM")
	}
	return certs, nil
}

// parseKey reads a private key of whichever encoding. The error never shows the key.
func parseKey(text []byte) (crypto.Signer, error) {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if !strings.HasSuffix(block.Type, "PRIVATE KEY") {
			continue
		}
		if key, err := x509.ParsePKCS8PrivateKey(block.Bytes); err == nil {
			if signer, ok := key.(crypto.Signer); ok {
				return signer, nil
			}
		}
		if key, err := x509.ParseECPrivateKey(block.Bytes); err == nil {
			return key, nil
		}
		if key, err := x509.ParsePKCS1PrivateKey(block.Bytes); err == nil {
			return key, nil
		}
		return nil, fmt.Errorf("the %s block holds no private key that can be read", block.Type)
	}
	return nil, errors.New("no private key in PEM")
}

func encodeCerts(certs []*x509.Certificate) []byte {
	var b bytes.Buffer
	for _, cert := range certs {
		_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}) // a Buffer does not fail
	}
	return b.Bytes()
}

func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}
