// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package rotation renews the credentials of clusters that agent-bootstrap registered before they expire,
// over the route of each cluster and with the credential that is still valid. It runs in the replica that
// is the leader.
//
// [Tokens] requests new ServiceAccount tokens. [Agents] puts a new certificate, and the tunnel's CA bundle
// when that has changed, into the Secret of the cluster's agent, and rolls the agent's Deployment
// ([registration.DeliverAgentCertificate]): a new agent connects before an old one drains. An agent that
// runs as a process has no such Secret; agent-bootstrap rotate renews its certificate.
package rotation
