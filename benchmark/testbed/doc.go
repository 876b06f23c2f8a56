// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package testbed is what the benchmark measures when it is given no clusters: real components on this machine.
//
//	client ─► direct ─────────────────────────────────────────────────────► kube-apiserver of the one managed cluster
//	       ─► hub, own endpoint ─► gateway ─► direct
//	       ─► hub, own endpoint ─► gateway ─► embedded tunnel server ◄─ stock agent ─►
//	       ─► hub, own endpoint ─► gateway ─► stock konnectivity-server ◄─ stock agent ─►
//
// All routes end at the same API server, so that they differ by nothing but the way. There are two gateways, one with its own tunnel
// server and one that uses the stock server, each with a hub of its own, since a hub has one APIService for them.
//
// A second pair of agents, and a second direct route, lead through a link whose length can be set: the cluster "far".
package testbed
