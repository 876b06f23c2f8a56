// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package proxy serves the proxy subresource of a ClusterGateway: it carries a request that has been authenticated and
// authorised to the API server of a managed cluster, and the answer back.
//
// # The way of a request
//
// [Handler.ServeHTTP] takes the cluster's name from the path, and the cluster's transport from a table (table.go): two
// http.Transports over dialers of their own, one speaking HTTP/2 for ordinary requests and one speaking HTTP/1.1 for
// upgrades. They are built when the first request for a cluster comes, or the first since its Secret changed; a request
// itself dials nothing, negotiates no TLS and makes no transport.
//
// The request is rewritten (rewrite.go) and handed to the standard library's ReverseProxy, which does upgrades too.
//
// # What never goes to a managed cluster
//
// The caller's credentials and identity: see stripRequest. The cluster sees the credential of its Secret, and nothing else
// that could authenticate anybody.
//
// # What the caller is told
//
// Whatever the managed API server answers goes back as it is, but for 401, which would look like the hub's own. Everything
// that goes wrong on the way is a metav1.Status (status.go) that names the cluster, the stage and what to do.
package proxy
