// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package dialer

// Purpose is what a connection carries. The proxy keeps one transport, and the embedded tunnel one
// stream per agent, for each purpose. Upgraded connections therefore cannot block ordinary
// requests.
type Purpose int

// The purposes of a connection. The zero value is ForRequests.
const (
	// ForRequests is for HTTP/2 connections, which all ordinary requests and watches of a cluster
	// share.
	ForRequests Purpose = iota
	// ForUpgrades is for HTTP/1.1 connections, one for each exec, attach or port-forward.
	ForUpgrades
	// Purposes is the number of purposes.
	Purposes
)

// String returns "requests" or "upgrades".
func (p Purpose) String() string {
	if p == ForUpgrades {
		return "upgrades"
	}
	return "requests"
}
