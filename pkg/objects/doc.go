// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package objects has the Kubernetes objects of which a registration consists: what is applied to the managed cluster (the base
// manifests/konnectivity/agent, and what is the cluster's own), and the Secret on the hub. agent-bootstrap applies them, and so does the gateway
// when it enrols a cluster with an invitation: from one source, so that both make the same.
package objects
