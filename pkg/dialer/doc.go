// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package dialer opens connections to the API servers of managed clusters.
//
// A [Dialer] belongs to one cluster and one route. There are three forms, and whoever holds a Dialer cannot tell them
// apart: all pass the same conformance suite (conformance_test.go here and in pkg/tunnel).
//
//   - [NewDirect] dials the API server itself, if need be through an HTTP or SOCKS5 proxy.
//   - The embedded tunnel, in pkg/tunnel, asks an agent that is connected to this process.
//   - [Konnectivity] asks an agent that is connected to a stock konnectivity-server.
//
// The two tunnelled forms hand out a [BufferedConn]. It exists because the Konnectivity protocol has no flow control per
// connection: all the connections of an agent share one stream, and a reader that stalls would stall all of them.
// A BufferedConn takes whatever arrives into a bounded buffer of its own, and when that is full only this one connection
// ends, with [ErrBufferFull].
//
// Failures are *[Error]: they carry the cluster, the stage at which the way to the API server ended, and the cause.
//
// Nothing here knows HTTP, TLS to the API server or Kubernetes objects; the package must not import k8s.io/apiserver.
package dialer
