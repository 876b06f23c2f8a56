// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package registry is the storage behind the API. It has none of its own: a ClusterGateway is converted from a Secret of the hub.
//
// [REST] answers get, list and watch by asking the hub for the Secrets, at the resource version the client asked for, and
// converting what comes back, event by event. So resource versions are the hub's own, and what an informer relies on (that no
// change is skipped or repeated, bookmarks, continuation, 410 when a version is gone) is what the hub promises. [HealthREST] and
// [ProxyREST] are the subresources.
//
// [Store] keeps every cluster parsed in memory for the way of a request, which must not wait for the hub.
//
// All of them act with the gateway's own account. The caller has been authorised for ClusterGateways by the time they are asked,
// so a refusal of the hub is never the caller's: see hubError.
package registry
