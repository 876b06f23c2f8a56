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
//   - No connection waits for another one. What arrives on a stream that connections share goes
//     into the connection's own buffer without blocking (dialer.BufferedConn); what leaves is taken
//     from the connections in turn.
//   - An agent whose connections carry nothing is avoided while another one works (record.go).
//   - When a stream ends, its pending dials and open connections fail at that moment.
//
// # A stream for each upgrade
//
// The protocol has no flow control for a connection, but each stream of an agent is an HTTP/2
// stream and has it. An agent writes what it receives to its API server connections one packet
// after the other. If the API server has stopped reading one of them (an exec whose process ignores
// its standard input), the agent stops reading the whole stream. Ordinary requests share one stream
// of each agent, and bring the flow control of HTTP/2 with them. An upgraded connection gets a
// stream to itself. When its client lags, the server stops reading that stream, and everything
// behind it waits, down to the process in the Pod. Upwards it is the same. Such a stream may stand
// still forever: it delays nobody.
//
// Streams come from the unmodified agent. It connects until it has as many servers as the header of
// its last stream reported, and waits for that header without a timeout. So the server always
// reports more servers, and leaves the last stream of each agent without a header: it is parked. A
// dial for an upgrade activates it, with the ID of a server that is new to the agent, and the agent
// parks the next one about a second later. A dial that finds none waits for it. If too many wait,
// they share a stream, and the buffer of each connection is bounded as for requests. park.go and
// wait.go have the details; choose.go chooses among streams and agents.
//
// A stream that has become free is kept for a while. While an agent has a stream parked at one
// replica, it looks for no other one. So while too few of several replicas have agents of the
// cluster (Config.Missing), a parked stream is freed again and again, and each replica keeps one
// stream for upgrades beside it. When the agents have found enough replicas, they stay parked, and
// make no more connections.
package tunnel
