// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package pki makes the certificates of the tunnel: its CA, the serving pair that agents verify, and the agents' own; and, from another CA, the
// serving pair of the gateway's own HTTPS endpoint.
//
// A CA lives in a Secret of the hub ([CASecret], [GatewayCASecret]): tls.crt and tls.key are what signs now, ca.crt is what is trusted. It can
// be the user's own: a Secret that is there is used as it is. [Ensure] makes it when it is not there; the gateway's
// replicas and agent-bootstrap may do so at once, and all end up with the same one.
//
// A CA that was made here is replaced before its end ([Authority.Rotated]) without anything being cut off. The new CA is signed
// with the old one's key as well, and this cross-certificate follows every certificate that the new CA signs: so who trusts only the
// old CA accepts these, too. The old CA stays in the bundle until it ends, so its certificates are accepted as well.
package pki
