// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package rotation renews the credentials of clusters before they end: the ServiceAccount tokens of clusters that agent-bootstrap registered, by
// TokenRequest over the cluster's own route, with the token that still holds. It runs in the replica that leads.
//
// The certificates of agents are not renewed here yet: agent-bootstrap rotate does that.
package rotation
