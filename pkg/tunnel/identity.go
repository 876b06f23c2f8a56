// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// ClusterOf returns the name of the cluster that an agent's certificate is for. The certificate
// must have been verified. Its organizations must contain v1alpha1.AgentOrganization, and its
// common name must be a valid name of a cluster.
func ClusterOf(cert *x509.Certificate) (string, error) {
	if !slices.Contains(cert.Subject.Organization, v1alpha1.AgentOrganization) {
		return "", fmt.Errorf("invalid agent certificate %q: its organization is %q and must be %q",
			cert.Subject.CommonName, cert.Subject.Organization, v1alpha1.AgentOrganization)
	}
	name := cert.Subject.CommonName
	if faults := v1alpha1.ValidateClusterName(name); len(faults) > 0 {
		return "", fmt.Errorf("invalid agent certificate: its common name %q is not a valid name of a cluster: %s", name, faults[0])
	}
	return name, nil
}

// peerIdentity is the identity of the peer at the other end of a stream.
type peerIdentity struct {
	// cluster is the name of the cluster in the certificate. If invited is true, the certificate is an
	// invitation to register a cluster of that name.
	cluster string
	invited bool
	// certificates are what the peer has presented, leaf first. They are verified again when the CA
	// changes.
	certificates []*x509.Certificate
	address      string
	// hangUp closes the connection under the stream.
	hangUp func() error
}

// keepConnCredentials make the connection under a stream available to identify. An agent that is
// blocked does not notice the end of its stream, but it notices the end of its connection.
type keepConnCredentials struct {
	credentials.TransportCredentials
}

// authWithConn is the AuthInfo of keepConnCredentials.
type authWithConn struct {
	credentials.TLSInfo
	conn net.Conn
}

// ServerHandshake implements credentials.TransportCredentials.
func (k keepConnCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := k.TransportCredentials.ServerHandshake(raw)
	if tlsInfo, ok := info.(credentials.TLSInfo); ok && err == nil {
		return conn, authWithConn{TLSInfo: tlsInfo, conn: raw}, nil
	}
	return conn, info, err
}

// Clone implements credentials.TransportCredentials.
func (k keepConnCredentials) Clone() credentials.TransportCredentials {
	return keepConnCredentials{k.TransportCredentials.Clone()}
}

// identify returns the identity of the peer that has opened a stream with this context.
func identify(ctx context.Context) (*peerIdentity, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil, errors.New("the stream has no peer")
	}
	info, ok := p.AuthInfo.(authWithConn)
	if !ok || len(info.State.VerifiedChains) == 0 {
		return nil, errors.New("the peer has presented no verified client certificate")
	}
	leaf := info.State.PeerCertificates[0]
	cluster, err := ClusterOf(leaf)
	invited := false
	if err != nil && slices.Equal(leaf.Subject.Organization, []string{v1alpha1.InvitationOrganization}) {
		cluster, err, invited = leaf.Subject.CommonName, nil, true
		if faults := v1alpha1.ValidateClusterName(cluster); len(faults) > 0 {
			err = fmt.Errorf("invalid invitation: the common name %q of its certificate is not a valid name of a cluster: %s", cluster, faults[0])
		}
	}
	if err != nil {
		return nil, err
	}
	return &peerIdentity{
		cluster: cluster, invited: invited, certificates: info.State.PeerCertificates, address: p.Addr.String(), hangUp: info.conn.Close,
	}, nil
}

// verify checks the peer's certificate against a CA bundle that has changed since the handshake. If
// the certificate has expired since, verify uses the time of its expiry: endFaulty decides how long
// its stream may continue.
func (p *peerIdentity) verify(opts x509.VerifyOptions) error {
	if opts.CurrentTime.IsZero() {
		opts.CurrentTime = time.Now()
	}
	if end := p.certificates[0].NotAfter; opts.CurrentTime.After(end) {
		opts.CurrentTime = end
	}
	opts.Intermediates = x509.NewCertPool()
	for _, c := range p.certificates[1:] {
		opts.Intermediates.AddCert(c)
	}
	opts.KeyUsages = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	_, err := p.certificates[0].Verify(opts)
	return err
}
