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
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// IssueAgent issues a certificate with a new key for the agents of a cluster. A lifetime of 0 means
// DefaultAgentLifetime. The certificate expires no later than the CA.
func (a *Authority) IssueAgent(cluster string, lifetime time.Duration) (certPEM, keyPEM []byte, err error) {
	if cluster == "" {
		return nil, nil, errors.New("the certificate of an agent needs the name of its cluster")
	}
	if lifetime <= 0 {
		lifetime = DefaultAgentLifetime
	}
	return a.agentIssuer().issue(clientTemplate(v1alpha1.AgentOrganization, cluster), lifetime)
}

// SignAgent issues a certificate for a key of somebody else, as IssueAgent does.
func (a *Authority) SignAgent(cluster string, key crypto.PublicKey, lifetime time.Duration) (certPEM []byte, err error) {
	if lifetime <= 0 {
		lifetime = DefaultAgentLifetime
	}
	return a.agentIssuer().signChain(clientTemplate(v1alpha1.AgentOrganization, cluster), key, lifetime)
}

// SignInvitation issues a certificate for a key of somebody else, as IssueInvitation does. A
// lifetime of 0 means DefaultAgentLifetime.
func (a *Authority) SignInvitation(cluster string, key crypto.PublicKey, lifetime time.Duration) (certPEM []byte, err error) {
	if lifetime <= 0 {
		lifetime = DefaultAgentLifetime
	}
	return a.agentIssuer().signChain(clientTemplate(v1alpha1.InvitationOrganization, cluster), key, lifetime)
}

// IssueInvitation issues a certificate with a new key, with which a cluster can enroll once. The
// certificate expires no later than the CA.
func (a *Authority) IssueInvitation(cluster string, lifetime time.Duration) (certPEM, keyPEM []byte, err error) {
	if cluster == "" || lifetime <= 0 {
		return nil, nil, errors.New("an invitation needs the name of its cluster and a lifetime")
	}
	return a.agentIssuer().issue(clientTemplate(v1alpha1.InvitationOrganization, cluster), lifetime)
}

func clientTemplate(organization, cluster string) *x509.Certificate {
	return &x509.Certificate{
		Subject:     pkix.Name{Organization: []string{organization}, CommonName: cluster},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
}

// IssueServing issues a serving certificate with a new key. Hosts are DNS names and IP addresses. A
// lifetime of 0 means DefaultServingLifetime. The certificate expires no later than the CA.
func (a *Authority) IssueServing(hosts []string, lifetime time.Duration) (certPEM, keyPEM []byte, err error) {
	return a.issueServing(hosts, "", lifetime)
}

// issueServing is IssueServing. With an organization, the certificate is for clients, too.
func (a *Authority) issueServing(hosts []string, organization string, lifetime time.Duration) (certPEM, keyPEM []byte, err error) {
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
	if organization != "" {
		template.Subject.Organization = []string{organization}
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
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

// issue issues a certificate with a new key.
func (a *Authority) issue(template *x509.Certificate, lifetime time.Duration) (certPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	if certPEM, err = a.signChain(template, key.Public(), lifetime); err != nil {
		return nil, nil, err
	}
	keyPEM, err = encodeKey(key)
	return certPEM, keyPEM, err
}

// signChain returns the certificate of the key, and those that lead to older CAs.
func (a *Authority) signChain(template *x509.Certificate, public crypto.PublicKey, lifetime time.Duration) (certPEM []byte, err error) {
	now, expiry := time.Now(), a.Certificate().NotAfter
	if !now.Before(expiry) {
		return nil, fmt.Errorf("the CA %q expired at %s", a.Certificate().Subject.CommonName, expiry.UTC().Format(time.RFC3339))
	}
	if template.SerialNumber, err = newSerial(); err != nil {
		return nil, err
	}
	setTimes(template, now, lifetime)
	if template.NotAfter.After(expiry) {
		template.NotAfter = expiry
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.BasicConstraintsValid = true
	cert, err := sign(template, a.Certificate(), public, a.reveal())
	if err != nil {
		return nil, err
	}
	// The chain holds the cross-certificates, for peers that trust an older CA only. A self-signed
	// CA leads to no other and is left out.
	chain := []*x509.Certificate{cert}
	for _, link := range a.chain {
		if !bytes.Equal(link.RawIssuer, link.RawSubject) {
			chain = append(chain, link)
		}
	}
	return encodeCerts(chain), nil
}
