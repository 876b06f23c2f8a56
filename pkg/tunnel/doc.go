// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package tunnel is the embedded Konnectivity server: the stock, unmodified Konnectivity agent dials out from behind its
// firewall to [Server], and the gateway dials the agent's API server through that connection, without leaving the process.
//
// It speaks the agent's side of the Konnectivity protocol (sigs.k8s.io/apiserver-network-proxy/proto/agent) itself instead of
// embedding that module's ProxyServer; docs/decisions.md says why. What it promises:
//
//   - The certificate decides the cluster (see [ClusterOf]). What an agent claims, its ID or its identifiers, is shown and
//     counted, and decides nothing.
//   - Connection and dial IDs belong to the one stream that they came over. There is no table in which two agents could meet,
//     so no agent can speak for, or listen to, another's connections.
//   - Only the address that a [Server.Dialer] was made for is ever sent to an agent.
//   - No connection waits for another: what arrives goes into the connection's own buffer without blocking
//     (dialer.BufferedConn), what leaves is taken from the connections in turn.
//   - When a stream ends, its pending dials and open connections fail at that moment.
//
// # Lanes
//
// An agent writes what it receives to its API server connections one packet after the other; a connection whose API server has
// stopped reading (an exec whose process ignores its standard input) makes it stop for all of its stream. Nothing on this
// side can prevent that. So each agent is given two streams, one for ordinary requests and one for upgraded connections
// (see [dialer.Purpose]): to the agent they look like two servers, which is how the protocol lets a server ask for more than one
// connection. A stream that stays blocked is ended, and the agent makes a new one.
package tunnel
