// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"k8s.io/apimachinery/pkg/util/validation"
)

// AgentOrganization is the organisation (O) in the subject of every agent's certificate. The common name (CN) is the name of
// the cluster that the agent belongs to.
const AgentOrganization = "cluster.core.oam.dev:tunnel-agents"

// ClusterOf returns the name of the cluster that a verified agent certificate stands for.
func ClusterOf(cert *x509.Certificate) (string, error) {
	if !slices.Contains(cert.Subject.Organization, AgentOrganization) {
		return "", fmt.Errorf("the certificate of %q is not an agent's: its organisation must be %q, and is %q",
			cert.Subject.CommonName, AgentOrganization, cert.Subject.Organization)
	}
	name := cert.Subject.CommonName
	if faults := validation.IsDNS1123Subdomain(name); len(faults) > 0 {
		return "", fmt.Errorf("the common name %q of the agent's certificate cannot be the name of a cluster: %s", name, faults[0])
	}
	return name, nil
}

// peerIdentity is who is at the other end of a stream.
type peerIdentity struct {
	cluster string
	// certificates are what the peer presented, leaf first, to be verified anew when the CA changes.
	certificates []*x509.Certificate
	address      string
}

func identify(ctx context.Context) (*peerIdentity, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil, errors.New("the stream has no peer")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 {
		return nil, errors.New("the peer presented no verified client certificate")
	}
	cluster, err := ClusterOf(info.State.PeerCertificates[0])
	if err != nil {
		return nil, err
	}
	return &peerIdentity{cluster: cluster, certificates: info.State.PeerCertificates, address: p.Addr.String()}, nil
}

// verify checks the peer's certificate against a CA bundle that has changed since the handshake.
func (p *peerIdentity) verify(opts x509.VerifyOptions) error {
	opts.Intermediates = x509.NewCertPool()
	for _, c := range p.certificates[1:] {
		opts.Intermediates.AddCert(c)
	}
	opts.KeyUsages = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	_, err := p.certificates[0].Verify(opts)
	return err
}
