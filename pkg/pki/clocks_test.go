// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package pki_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"testing"
	"time"

	"github.com/oam-dev/cluster-gateway/pkg/pki"
)

// A replica whose clock is ten minutes off accepts the certificates that another one has just
// issued, also those of a CA that was created just now.
func TestClocksTenMinutesOff(t *testing.T) {
	t.Parallel()
	a := authority(t)
	rotated, err := a.Rotated(0)
	if err != nil {
		t.Fatal(err)
	}
	for name, issuer := range map[string]*pki.Authority{"CA": a, "new CA": rotated} {
		agentPEM, agentKey, err := issuer.IssueAgent("edge", 0)
		if err != nil {
			t.Fatal(err)
		}
		servingPEM, servingKey, err := issuer.IssueServing([]string{"peers.example.com"}, 0)
		if err != nil {
			t.Fatal(err)
		}
		agent, _ := leaf(t, agentPEM, agentKey)
		serving, _ := leaf(t, servingPEM, servingKey)
		for _, off := range []time.Duration{-59 * time.Minute, -10 * time.Minute, 0, 10 * time.Minute} {
			for what, c := range map[string]struct {
				chain []*x509.Certificate
				usage x509.ExtKeyUsage
			}{"agent": {agent, x509.ExtKeyUsageClientAuth}, "replica": {serving, x509.ExtKeyUsageServerAuth}} {
				links := x509.NewCertPool()
				for _, link := range c.chain[1:] {
					links.AddCert(link)
				}
				if _, err := c.chain[0].Verify(x509.VerifyOptions{
					Roots: issuer.Pool(), Intermediates: links, CurrentTime: time.Now().Add(off), KeyUsages: []x509.ExtKeyUsage{c.usage},
				}); err != nil {
					t.Errorf("%s: the certificate of the %s, with a clock that is %s off: %v", name, what, off, err)
				}
			}
		}
		if since := time.Since(pki.IssuedAt(agent[0])); since < 0 || since > time.Minute {
			t.Errorf("%s: the certificate of the agent says that it was issued %s ago", name, since)
		}
		if lifetime := pki.Lifetime(agent[0]); (lifetime - pki.DefaultAgentLifetime).Abs() > time.Minute {
			t.Errorf("%s: the certificate of the agent has the lifetime %s, want %s", name, lifetime, pki.DefaultAgentLifetime)
		}
	}
}

// A certificate that an earlier version has issued does not seem to be younger than it is: it could
// have been revoked.
func TestIssuedByEarlierVersion(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	issued := time.Now().Add(-time.Hour).Truncate(time.Second)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "edge"}, NotBefore: issued.Add(-5 * time.Minute), NotAfter: issued.Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	if got := pki.IssuedAt(cert); !got.Equal(issued) {
		t.Errorf("it was issued at %s, want %s", got, issued)
	}
}
