// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package dialer opens connections to the API servers of managed clusters.
//
// A [Dialer] belongs to one cluster and one route. There are three kinds. Code that uses a Dialer
// cannot tell them apart, because all of them pass the same conformance suite (package dialertest).
//
//   - [NewDirect] dials the API server from this process, through an HTTP or SOCKS5 proxy if the
//     cluster has one.
//   - The embedded tunnel, in pkg/tunnel, asks an agent that is connected to this process.
//   - [Konnectivity] asks an agent that is connected to a stock konnectivity-server.
//
// Connections of the two tunneled kinds are [BufferedConn]s. The Konnectivity protocol has no flow
// control for a single connection: all connections of an agent share one stream, so a reader that
// stalls would stall all of them. A BufferedConn therefore takes whatever arrives into a bounded
// buffer of its own. When that buffer is full, only this one connection ends, with [ErrBufferFull].
// The buffers of one cluster's connections have a common bound as well; see [Budgets].
//
// A failed dial returns an *[Error]. It carries the cluster, the stage at which the dial failed,
// and the cause.
//
// The package knows nothing about HTTP, TLS to the API server or Kubernetes objects. It must not
// import k8s.io/apiserver.
package dialer
