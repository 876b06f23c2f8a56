// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package bootstrap implements the commands of agent-bootstrap. They register a cluster with a
// gateway, use it, remove it again, and find out at which stage the path to it is broken.
//
// A registration consists of two sets of objects. In the managed cluster: the namespace
// cluster-gateway-agent with everything in it (the base manifests/konnectivity/agent, a ConfigMap
// and a Secret for the agent), and a few cluster-scoped objects that the namespace owns, so that
// deleting the namespace removes all of them. On the hub: one Secret. The commands use server-side
// apply, so they can be repeated at any time: an unchanged object keeps its resource version, and
// valid certificates and tokens are kept.
//
// The commands and their flags are in command.go, the client of a cluster (the hub or a managed
// one) is in client.go, and each command has its own file: register.go, unregister.go, rotate.go,
// kubeconfig.go, list.go, doctor.go, each.go, with.go, export.go and bundle.go. pkg/registration
// defines what is applied.
//
// The program is also the kubectl plugin "kubectl cg". program.go puts the name that it was started
// with into its texts, which are all written with the name agent-bootstrap.
package bootstrap
