// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package e2e holds the end-to-end tests: real kubectl and real clients, through real gateways, to real clusters of package lab.
//
// One lab serves all tests of a run: two hubs, each with a gateway (one with the embedded tunnel server, one with a stock
// konnectivity-server), a cluster that the gateways reach directly, and one behind a firewall with an agent for each gateway. Tests that
// break something start what they break themselves.
package e2e
