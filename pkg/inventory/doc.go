// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package inventory publishes the registered clusters as ClusterProfiles of
// sigs.k8s.io/cluster-inventory-api, so that programs of a fleet find the clusters and reach them
// through the gateway.
//
// A ClusterProfile says what a cluster is called, whether it is healthy, and how to reach it: the
// URL of the cluster at the gateway, and the CA that verifies the gateway. It contains no
// credential, neither of a cluster nor of the gateway. A program that uses the profile presents its
// own token for the hub. So the permission to read profiles is not the permission to use clusters.
//
// [New] renders a profile. A [Publisher] keeps the profiles of one namespace up to date; only the
// elected replica runs it. It changes and deletes only profiles that it created: those with its
// name as spec.clusterManager and with the label app.kubernetes.io/managed-by. In those, it keeps
// what others have added: labels, annotations, conditions, properties and access providers.
//
// The types of this package are the part of the API that it writes. The package of the API itself
// requires controller-runtime, which the gateway does not contain. The end-to-end test reads the
// profiles with that package.
package inventory
