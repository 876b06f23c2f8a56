// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package peers connects the replicas of the gateway. A replica that has no agent of a cluster
// forwards requests to a replica that has one.
//
// # Presence
//
// Each replica has a Lease of its own in the gateway's namespace (presence.go). It contains the
// address for the other replicas and whether the replica drains. A second Lease, which is written
// only when it changes, contains a set of the clusters that have agents there (set.go). All
// replicas watch these Leases. A replica whose Lease is not renewed for [Timeout] is away. Each
// replica measures that time with its own clock, from the moment at which it saw the last renewal,
// so clocks need not agree.
//
// # Connections
//
// Replicas connect to each other with TLS 1.3 (tls.go). Both ends present the certificate of the
// replicas, which a CA issues that exists for nothing else. Ordinary requests and streams use
// HTTP/2, each upgrade has a connection of its own (client.go). Pings notice a replica that does
// not run any more. A replica to which a connection has failed is the last resort until one works
// again. Otherwise the one that has the fewest requests of this replica gets the next one
// (load.go).
//
// # What is forwarded
//
// The package carries HTTP requests and does not know what they mean: pkg/proxy writes and reads
// who the caller is. Its server (server.go) hands on only requests of peers, and only for clusters
// that have an agent at this replica. All others get an answer with which the other replica tries
// the next one. So no request takes more than one hop.
//
// Renewals and probes, which belong to the gateway itself, use [Peers.Dialer]: a connection to the
// cluster's API server through the other replica. TLS is then between this replica and the API
// server, so the other replica sees no credential.
package peers
