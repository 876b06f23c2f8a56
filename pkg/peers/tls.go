// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package peers

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"slices"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/pki"
)

// ServerName is the name in the certificate of the replicas. It is not a name in DNS: replicas know
// each other by address, and any of them may answer at one.
const ServerName = "peers.cluster-gateway.internal"

// Credentials are the certificate of the replicas and the CA that issues it. *pki.Keeper implements
// it.
type Credentials interface {
	// Authority returns the CA, or nil if it is not known yet.
	Authority() *pki.Authority
	// Pair returns the certificate and its key in PEM, or nil if they are not known yet.
	Pair() (cert, key []byte)
}

var _ Credentials = (*pki.Keeper)(nil)

var (
	errNoCredentials = errors.New("the certificate of the replicas has not been read from the hub yet")
	errNotAPeer      = errors.New("the certificate is not that of a replica of the gateway")
)

// tlsConfig returns a configuration of both ends with the current credentials. There is no
// resumption of sessions, which would outlive them.
func tlsConfig(c Credentials, protocols ...string) (*tls.Config, error) {
	authority := c.Authority()
	cert, key := c.Pair()
	if authority == nil || cert == nil {
		return nil, errNoCredentials
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, err
	}
	pool := authority.Pool()
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: protocols, Certificates: []tls.Certificate{pair}, SessionTicketsDisabled: true,
		RootCAs: pool, ServerName: ServerName,
		ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
		// In addition to the verification by crypto/tls.
		VerifyConnection: func(state tls.ConnectionState) error { return verifyPeer(state.PeerCertificates) },
	}, nil
}

// serverTLS returns the configuration of the listener, which follows the credentials.
func serverTLS(c Credentials) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2", "http/1.1"},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: x509.NewCertPool(),
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return tlsConfig(c, "h2", "http/1.1") },
	}
}

// verifyPeer returns an error unless the certificate is that of a replica.
func verifyPeer(chain []*x509.Certificate) error {
	if len(chain) == 0 || !slices.Equal(chain[0].Subject.Organization, []string{v1alpha1.PeerOrganization}) {
		return errNotAPeer
	}
	return nil
}
