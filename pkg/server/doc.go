// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package server assembles the gateway, in the steps of k8s.io/sample-apiserver:
//
//	Options ─ Config() ─► Config ─ Complete() ─► CompletedConfig ─ New(ctx) ─► Server ─ Run(ctx)
//
// The steps are:
//
//   - [Options] are the flags, in groups. Each group owns its flags, their validation and its part
//     of the configuration. All faults are reported at once.
//   - [Config] contains values. Config() reads files, but makes no request to the hub. A program
//     that embeds the gateway can change the values.
//   - [CompletedConfig.New] makes the parts in the order in which they depend on each other, and
//     then subscribes them to one another. It listens, and reads from the hub what it needs.
//   - [Server.Run] runs the parts until its context ends, and stops them in order.
//
// The parts are:
//
//   - the store of clusters, which follows the Secrets of one namespace (pkg/registry);
//   - the tunnel: the embedded server (pkg/tunnel) or connections to stock konnectivity-servers
//     (pkg/dialer);
//   - the proxy (pkg/proxy), and what checks and renews clusters (pkg/health, pkg/rotation);
//   - the certificate of the gateway's own endpoint (pkg/pki);
//   - the generic API server of k8s.io/apiserver with the storage of ClusterGateways
//     (pkg/registry);
//   - the tasks that only the leader among the replicas runs.
//
// A request passes the generic API server's authentication, audit and authorization. Then a request
// for the proxy subresource goes to the proxy. The API machinery of k8s.io/apiserver must not see
// it, because it refuses options that are meant for the managed cluster, such as dryRun. An upgrade
// needs the verb create in addition to the verb of its HTTP method.
package server
