// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package registration defines what a registration is, on both sides. In the managed cluster it is
// the namespace cluster-gateway-agent with everything in it (the base manifests/konnectivity/agent,
// and the agent's ConfigMap and Secret), and a few cluster-scoped objects that the namespace owns.
// On the hub it is one Secret.
//
// Three packages build on this one, and none of them imports another: bootstrap (the commands of
// agent-bootstrap), enrollment (a cluster registers itself through the tunnel, with an invitation)
// and rotation (the gateway renews credentials before they expire). What all of them need is here
// once, so that they write the same objects, ask for the same rights, and refuse with the same
// texts.
//
// Each file has one subject: names.go the names that both sides use, object.go conversions,
// agent.go the agent and its namespace, access.go what the gateway may do in a cluster, secret.go
// the cluster's Secret on the hub, invitation.go the record of an invitation, agentpair.go the
// agent's certificate, and deliver.go how a running agent gets another one.
package registration
