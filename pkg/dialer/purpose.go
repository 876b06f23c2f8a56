// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package dialer

// Purpose is what a connection carries. The proxy keeps one transport, and the tunnel one stream per
// agent, for each purpose, so that upgraded connections cannot hold up ordinary requests.
type Purpose int

// The purposes of a connection. The zero value is ForRequests.
const (
	// ForRequests is HTTP/2, shared by all ordinary requests and watches of a cluster.
	ForRequests Purpose = iota
	// ForUpgrades is HTTP/1.1, one connection for each exec, attach or port-forward.
	ForUpgrades
	// Purposes is the number of purposes.
	Purposes
)
