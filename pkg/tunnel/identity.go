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

// ClusterOf returns the name of the cluster that a verified agent certificate stands for.
func ClusterOf(cert *x509.Certificate) (string, error) {
	if !slices.Contains(cert.Subject.Organization, v1alpha1.AgentOrganization) {
		return "", fmt.Errorf("the certificate of %q is not an agent's: its organisation must be %q, and is %q",
			cert.Subject.CommonName, v1alpha1.AgentOrganization, cert.Subject.Organization)
	}
	name := cert.Subject.CommonName
	if faults := v1alpha1.ValidateClusterName(name); len(faults) > 0 {
		return "", fmt.Errorf("the common name %q of the agent's certificate cannot be the name of a cluster: %s", name, faults[0])
	}
	return name, nil
}

// peerIdentity is who is at the other end of a stream.
type peerIdentity struct {
	// cluster is the name that the certificate stands for; with invited, the name that it invites to.
	cluster string
	invited bool
	// certificates are what the peer presented, leaf first, to be verified anew when the CA changes.
	certificates []*x509.Certificate
	address      string
	// hangUp closes the connection under the stream.
	hangUp func() error
}

// keepConn makes the connection that a stream came over available to identify. An agent that is blocked does not notice that its
// stream has ended; that its connection has, it does.
type keepConn struct {
	credentials.TransportCredentials
}

type authWithConn struct {
	credentials.TLSInfo
	conn net.Conn
}

func (k keepConn) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := k.TransportCredentials.ServerHandshake(raw)
	if tlsInfo, ok := info.(credentials.TLSInfo); ok && err == nil {
		return conn, authWithConn{TLSInfo: tlsInfo, conn: raw}, nil
	}
	return conn, info, err
}

// Clone implements credentials.TransportCredentials.
func (k keepConn) Clone() credentials.TransportCredentials {
	return keepConn{k.TransportCredentials.Clone()}
}

func identify(ctx context.Context) (*peerIdentity, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil, errors.New("the stream has no peer")
	}
	info, ok := p.AuthInfo.(authWithConn)
	if !ok || len(info.State.VerifiedChains) == 0 {
		return nil, errors.New("the peer presented no verified client certificate")
	}
	leaf := info.State.PeerCertificates[0]
	cluster, err := ClusterOf(leaf)
	invited := false
	if err != nil && slices.Equal(leaf.Subject.Organization, []string{v1alpha1.InvitationOrganization}) {
		cluster, err, invited = leaf.Subject.CommonName, nil, true
		if faults := v1alpha1.ValidateClusterName(cluster); len(faults) > 0 {
			err = fmt.Errorf("the common name %q of the invitation's certificate cannot be the name of a cluster: %s", cluster, faults[0])
		}
	}
	if err != nil {
		return nil, err
	}
	return &peerIdentity{
		cluster: cluster, invited: invited, certificates: info.State.PeerCertificates, address: p.Addr.String(), hangUp: info.conn.Close,
	}, nil
}

// verify checks the peer's certificate against a CA bundle that has changed since the handshake. A certificate that has ended meanwhile is
// looked at as of its last moment: how long its stream goes on is endFaulty's to say.
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
