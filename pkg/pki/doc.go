// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package pki issues and renews the certificates of the tunnel: its CA, the serving certificate
// that agents verify, the CA of agents' certificates, and these certificates. From a second CA, it
// issues the serving certificate of the gateway's own HTTPS endpoint.
//
// A CA is stored in a Secret on the hub ([CASecret], [GatewayCASecret]): tls.crt and tls.key hold
// the current CA, ca.crt holds the bundle of all trusted CAs. Users can provide their own: an
// existing Secret is used as it is. [Ensure] creates the Secret if there is none. Several replicas
// of the gateway and agent-bootstrap may call it at the same time, and all get the same CA.
//
// A CA that the gateway created is replaced before it expires ([Authority.Rotated]), and no
// connection is refused in the meantime. The old CA cross-signs the new one, and every certificate
// that the new CA issues carries this cross-certificate in its chain. So a peer that trusts only
// the old CA accepts the new certificates too. The old CA stays in the bundle until it expires, so
// its certificates stay valid.
//
// The certificates of agents are from a CA of their own ([AgentsCASecret]), for client certificates
// only. The tunnel's CA signs it in the same way, so earlier versions, which know only the tunnel's
// CA, accept them. Certificates that the tunnel's CA itself has issued are accepted until the
// operator refuses them ([AnnotationTunnelCA]). See agents.go.
package pki
