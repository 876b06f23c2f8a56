// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package registry is the storage behind the API. It stores nothing itself: each ClusterGateway
// represents a Secret on the hub.
//
// [REST] serves get, list and watch. It requests the Secrets from the hub, at the resource version
// that the client requested, and converts them one by one. So all resource versions are the hub's,
// and the hub provides the guarantees that informers need: no change is skipped or repeated,
// bookmarks, continuation, and 410 for an expired version. [HealthREST] and [ProxyREST] are the
// subresources.
//
// [Store] keeps all clusters parsed in memory, because a request must not wait for the hub.
//
// All of them use the gateway's own ServiceAccount. The caller is already authorized for
// ClusterGateways, so if the hub denies a request, this is never the caller's fault: see hubError.
package registry
