// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package server puts the gateway together: options (flags) → configuration → a running server.
//
// [Options] are groups, each of which owns its flags, their validation and what is made of them: serving, delegated
// authentication and authorisation, audit and tracing are k8s.io/apiserver's own; [HubOptions], [TunnelOptions] and
// [ProxyOptions] are the gateway's. [Options.Config] makes the parts, [Config.Run] runs them until its context ends:
//
//   - the store of clusters, an informer over the Secrets of one namespace (pkg/registry);
//   - the tunnel: the embedded server (pkg/tunnel) or the connections to stock konnectivity-servers (pkg/dialer);
//   - the generic API server with the storage of ClusterGateways, and in front of it, behind authentication, authorisation and
//     audit, the proxy (pkg/proxy).
//
// The proxy subresource is served before the API machinery of k8s.io/apiserver sees the request (see withProxy): that
// machinery would refuse options which are meant for the managed cluster, dryRun among them.
package server
