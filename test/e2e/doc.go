// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package e2e contains the end-to-end tests: real kubectl and real clients send requests through
// real gateways to real clusters of package lab.
//
// All tests of the package share one lab: two hubs, each with a gateway (one with the embedded
// tunnel server, one with a stock konnectivity-server), a cluster that the gateways reach directly,
// and a firewalled one with an agent for each gateway. A test that breaks something starts its own.
package e2e
