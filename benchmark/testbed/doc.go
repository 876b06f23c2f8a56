// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package testbed starts the clusters of the benchmark if the user provides none: real components
// on this machine.
//
//	client ─► direct ──────────────────────────────────────────────► kube-apiserver of the cluster
//	       ─► hub, own endpoint ─► gateway ─► direct
//	       ─► hub, own endpoint ─► gateway ─► embedded tunnel server ◄─ stock agent ─►
//	       ─► hub, own endpoint ─► gateway ─► stock konnectivity-server ◄─ stock agent ─►
//
// All routes end at the same API server, so only the route differs. There are two gateways, one
// with its own tunnel server and one that uses the stock server. Each has its own hub, because a
// hub has only one APIService for the gateway.
//
// A second pair of agents and a second direct route use a link whose delay can be set: they reach
// the cluster "far".
package testbed
