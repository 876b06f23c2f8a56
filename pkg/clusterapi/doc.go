// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package clusterapi registers the clusters of Cluster API: it turns each Secret NAME-kubeconfig
// that Cluster API writes into the Secret of a cluster, keeps it up to date when the kubeconfig is
// renewed, and deletes it when the kubeconfig is gone.
//
// [Convert] converts a kubeconfig. It accepts only what is in the kubeconfig itself: a file, a
// program or a server without verification is refused. A [Registrar] follows the Secrets in some
// namespaces of the hub; only the elected replica runs it. It changes and deletes only Secrets that
// it created: those with the label app.kubernetes.io/managed-by and an annotation with the name of
// their kubeconfig. So a name that is registered by other means is never taken over.
package clusterapi
