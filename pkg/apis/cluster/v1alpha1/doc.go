// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package v1alpha1 contains the API of the group cluster.core.oam.dev: the ClusterGateway, which
// represents a managed cluster, and the names that others store: paths, labels, annotations, keys
// of Secrets and organizations in certificates.
//
// Clients import this package. It depends on apimachinery only, and on no other package of this
// module.
//
// +k8s:deepcopy-gen=package
// +k8s:openapi-gen=true
// +k8s:openapi-model-package=dev.oam.core.cluster.v1alpha1
// +groupName=cluster.core.oam.dev
package v1alpha1
