// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package rotation renews the credentials of clusters that agent-bootstrap or an invitation
// registered, before they expire. It runs in the replica that is the leader.
//
// The gateway has two accounts in each cluster. Requests of callers are sent with the token of the
// first one. This package uses the second one, the account for maintenance, over a connection of
// its own for each renewal, so that nothing of a caller can be sent with it. Clusters that an
// earlier version registered have only the first account: [Tokens] creates the second one if the
// rights of callers suffice for that.
//
//   - [Tokens] requests new tokens of both accounts.
//   - [Agents] puts a new certificate, and the tunnel's CA bundle when that has changed, into the
//     Secret of the cluster's agent, and rolls the agent's Deployment
//     ([registration.DeliverAgentCertificate]): a new agent connects before an old one drains. An
//     agent that runs as a process has no such Secret; agent-bootstrap rotate renews its
//     certificate.
//   - [Upkeep] follows the changes of the cluster's CA, and removes rights that earlier versions
//     gave to the account for callers.
package rotation
