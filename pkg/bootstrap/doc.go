// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package bootstrap is what agent-bootstrap does: it registers a cluster with a gateway, removes it again, and finds out at which stage
// the way to it breaks.
//
// A registration is two sets of objects. In the managed cluster: the namespace cluster-gateway-agent with everything in it (the base
// manifests/konnectivity/agent, a ConfigMap and a Secret for the agent), and a few cluster-scoped objects that the namespace owns, so
// that deleting the namespace removes all of it. On the hub: one Secret. Everything is applied on the server's side, so that commands
// can be repeated at will: what is as it should be stays as it is, down to its resource version; certificates and tokens
// that are still good are kept.
//
// command.go has the commands and their flags; client.go the client of a cluster, the hub or a managed one; pkg/registration what is applied;
// register.go, unregister.go, rotate.go, kubeconfig.go, list.go and doctor.go a command each.
package bootstrap
