// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registration

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/pki"
)

// Reasons why a certificate cannot be that of a cluster's agent, to be tested with errors.Is.
var (
	// ErrInvitationCertificate is the reason for the certificate of an invitation.
	ErrInvitationCertificate = errors.New("it is the certificate of an invitation")
	// ErrNotAgentCertificate is the reason for a certificate of another organization.
	ErrNotAgentCertificate = errors.New("it is not the certificate of an agent")
	// ErrOtherCluster is the reason for the certificate of another cluster's agent.
	ErrOtherCluster = errors.New("it is the certificate of another cluster's agent")
	// ErrUnknownAuthority is the reason for a certificate that the tunnel's CA did not issue.
	ErrUnknownAuthority = errors.New("it is signed by an unknown CA")
)

// VerifyAgentCertificate returns an error unless chain, which begins with the certificate itself,
// is what the gateway accepts from the agents of the cluster. If roots is nil, the issuer is not
// checked.
func VerifyAgentCertificate(chain []*x509.Certificate, roots *x509.CertPool, name string, now time.Time) error {
	cert := chain[0]
	switch {
	case slices.Contains(cert.Subject.Organization, v1alpha1.InvitationOrganization):
		return fmt.Errorf("%w, which serves as the agent's only while the record of the invitation is on the hub (agent-bootstrap invite %s --revoke deletes the record): agent-bootstrap rotate %s --out-dir DIR replaces it",
			ErrInvitationCertificate, name, name)
	case !slices.Contains(cert.Subject.Organization, v1alpha1.AgentOrganization):
		return fmt.Errorf("%w: its organization is %q, and must be %q", ErrNotAgentCertificate, strings.Join(cert.Subject.Organization, ","), v1alpha1.AgentOrganization)
	case cert.Subject.CommonName != name:
		return fmt.Errorf("%w: it is for the cluster %q and not for %q", ErrOtherCluster, cert.Subject.CommonName, name)
	case now.Before(cert.NotBefore):
		return fmt.Errorf("it is not valid before %s", cert.NotBefore.UTC().Format(time.RFC3339))
	case now.After(cert.NotAfter):
		return fmt.Errorf("it expired at %s", cert.NotAfter.UTC().Format(time.RFC3339))
	case roots == nil:
		return nil
	}
	intermediates := x509.NewCertPool()
	for _, link := range chain[1:] {
		intermediates.AddCert(link)
	}
	if _, err := cert.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}); err != nil {
		return fmt.Errorf("%w: %q, which is not the tunnel's CA: %w", ErrUnknownAuthority, cert.Issuer, err)
	}
	return nil
}

// Verify returns the certificate of the pair, and an error unless the gateway accepts it from an
// agent of the cluster and the key belongs to it. bundle holds the CAs that the gateway trusts, in
// PEM; if it is empty, the issuer is not checked.
func (p AgentPair) Verify(bundle []byte, name string, now time.Time) (*x509.Certificate, error) {
	pair, err := tls.X509KeyPair(p.Certificate, p.Key)
	if err != nil {
		return nil, fmt.Errorf("the certificate and its key cannot be used: %w", err)
	}
	chain := []*x509.Certificate{pair.Leaf}
	for _, der := range pair.Certificate[1:] {
		if link, err := x509.ParseCertificate(der); err == nil {
			chain = append(chain, link)
		}
	}
	var roots *x509.CertPool
	if len(bundle) > 0 {
		roots = x509.NewCertPool()
		if !roots.AppendCertsFromPEM(bundle) {
			return pair.Leaf, errors.New("the tunnel's CA bundle on the hub holds no certificate")
		}
	}
	return pair.Leaf, VerifyAgentCertificate(chain, roots, name, now)
}

// IssueAgentPair issues a certificate for the agents of a cluster. The pair trusts the CAs of the
// authority's bundle.
func IssueAgentPair(authority *pki.Authority, name string, lifetime time.Duration, now time.Time) (AgentPair, *x509.Certificate, error) {
	cert, key, err := authority.IssueAgent(name, lifetime)
	if err != nil {
		return AgentPair{}, nil, fmt.Errorf("issue the agent's certificate: %w", err)
	}
	pair := AgentPair{Certificate: cert, Key: key, CA: authority.Bundle()}
	issued, err := pair.Verify(pair.CA, name, now)
	if err != nil {
		return AgentPair{}, nil, fmt.Errorf("the agent's certificate that was just issued cannot be used: %w", err)
	}
	return pair, issued, nil
}

// CertificateLifetime returns the lifetime for which cert was issued, so that its successor can
// have the same. It returns false if cert expires together with one of the CAs, which has shortened
// its lifetime.
func CertificateLifetime(cert *x509.Certificate, cas []*x509.Certificate) (time.Duration, bool) {
	for _, ca := range cas {
		if cert.NotAfter.Equal(ca.NotAfter) {
			return 0, false
		}
	}
	return pki.Lifetime(cert), true
}
