// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"context"
	"crypto/x509"
	"net"
)

// Enroller registers clusters that connect with an invitation. It must be safe for concurrent use.
type Enroller interface {
	// Enroll either registers the invited cluster or returns why not, in words for the user who runs
	// the agent. ctx ends with the cluster's stream, and after [EnrollmentTimeout]. Enroll is called
	// for one stream of a name at a time.
	//
	// If serves is true, the cluster is already registered, and its agent uses the invitation as its
	// certificate from now on. Enroll must not have dialed in that case.
	Enroll(ctx context.Context, invited Invited) (serves bool, err error)
	// Serves returns an error if an agent may no longer use its invitation as its certificate. It
	// returns nil if it cannot find out. invited.Dial is nil.
	Serves(ctx context.Context, invited Invited) error
}

// Invited is a cluster that has connected with an invitation. The peer can choose all fields except
// Name and Certificate.
type Invited struct {
	// Name is the common name of the invitation's certificate. It is a valid name of a cluster.
	Name string
	// Certificate is the invitation's certificate, which has been verified.
	Certificate *x509.Certificate
	// Chain has the other certificates that the peer has sent. They have not been verified.
	Chain []*x509.Certificate
	// Token is the bearer token that the peer has sent, or "".
	Token string
	// Dial connects to an address, host:port, through the peer, which also resolves the name. The
	// server that answers has not been verified. The connections end with Enroll's ctx at the latest.
	Dial func(ctx context.Context, address string) (net.Conn, error)
}
