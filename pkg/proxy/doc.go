// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package proxy serves the proxy subresource of a ClusterGateway. It sends a request that was
// authenticated and authorized by the filters in front of it to the API server of a managed
// cluster, and returns the answer.
//
// # How a request is served
//
// [Handler.ServeHTTP] reads the cluster's name from the path (target.go), works out what the
// request is to the managed cluster (attributes.go), and takes the cluster's transports from a
// table (table.go). A cluster has three http.Transports: one speaks HTTP/2 and serves ordinary
// requests, the second speaks HTTP/2 with a small receive window and serves long-running requests,
// and the third speaks HTTP/1.1 and serves upgrades. They are built for the first request to a
// cluster, and again for the first request after its Secret changed. A request that finds a
// connection dials nothing, negotiates no TLS and makes no transport.
//
// An exchange (exchange.go) is one request and its answer. It rewrites the request and hands it to
// a ReverseProxy of the standard library, which it owns. What is particular to watches and to
// upgrades is in watch.go and upgrade.go.
//
// # Limits
//
// Each cluster has limits of its own (limit.go): for requests in flight, which have a deadline, for
// long-running requests, which have none, and for dials in progress (dialgate.go). What is
// long-running is decided as kube-apiserver decides it. An upgrade is an ordinary request until the
// cluster has accepted it.
//
// All clusters share the memory of the process (memory.go): what a request can make the gateway
// hold is taken from a budget when the request is admitted.
//
// A request that the cluster says it did not process is sent again, if its body was kept
// (resend.go).
//
// # Applications
//
// Web applications behind the proxy subresources of Pods, Services and Nodes (application.go) get
// relative links and redirects, and their own cookies if that is enabled. The identity of the
// caller does not reach them.
//
// # What never reaches a managed cluster
//
// The caller's credentials and identity: see stripRequest in headers.go. The cluster sees the
// credential in its Secret, and nothing else that could authenticate anybody.
//
// # What the caller sees
//
// The managed API server's answer is returned as it is, except for 401, which would look like the
// hub's own. Every failure on the way is a metav1.Status (status.go) that names the cluster, the
// stage that failed and what to do.
package proxy
