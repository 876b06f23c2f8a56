// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package v1alpha1 holds the API of the group cluster.core.oam.dev: ClusterGateway, one managed cluster that can be reached
// through the gateway, and the labels and annotations of the Secret that each ClusterGateway is converted from.
//
// The package is meant to be imported by clients. It depends on apimachinery alone, and on no other package of this module.
//
// +k8s:deepcopy-gen=package
// +k8s:openapi-gen=true
// +k8s:openapi-model-package=dev.oam.core.cluster.v1alpha1
// +groupName=cluster.core.oam.dev
package v1alpha1
