// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package rotation renews what clusters that agent-bootstrap registered are reached with, before it ends, over each cluster's own route and with
// the credential that still holds. It runs in the replica that leads.
//
// [Tokens] asks for new ServiceAccount tokens by TokenRequest. [Agents] puts a new certificate, and the CA bundle of the tunnel when that has
// changed, into the Secret of the cluster's agent, and rolls its Deployment ([registration.DeliverAgentCertificate]): a new agent connects before an old
// one drains. An agent that runs as a process has no such Secret; its certificate is renewed by agent-bootstrap rotate.
package rotation
