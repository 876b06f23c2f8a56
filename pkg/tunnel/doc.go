// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package tunnel is the embedded Konnectivity server. The stock, unmodified Konnectivity agent
// dials out from behind its firewall to [Server], and the gateway dials the agent's API server
// through that connection, without leaving the process.
//
// The package implements the agent's side of the Konnectivity protocol
// (sigs.k8s.io/apiserver-network-proxy/proto/agent) itself instead of embedding that module's
// ProxyServer; docs/decisions.md explains why. It promises:
//
//   - The certificate decides the cluster (see [ClusterOf]). The ID and the identifiers that an
//     agent claims are logged and counted. They decide nothing.
//   - Connection and dial IDs belong to the one stream that they arrived on. No table is shared by
//     two agents, so no agent can speak for another one or listen to its connections.
//   - Only the address that a [Server.Dialer] was made for is ever sent to an agent.
//   - No connection waits for another one. What arrives goes into the connection's own buffer
//     without blocking (dialer.BufferedConn); what leaves is taken from the connections in turn.
//   - When a stream ends, its pending dials and open connections fail at that moment.
//
// # Two streams for each agent
//
// An agent writes what it receives to its API server connections one packet after the other. If the
// API server has stopped reading one of them (an exec whose process ignores its standard input),
// the agent stops reading the whole stream. Nothing on this side can prevent that. So each agent
// gets two streams, one for each [dialer.Purpose]: ordinary requests, and upgraded connections. To
// the agent they look like two servers, because that is how the protocol lets a server ask for
// several connections. If a stream stays blocked, the server ends it, and the agent opens a new
// one.
package tunnel
