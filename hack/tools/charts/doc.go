// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package charts tests the charts of this repository with Helm's own code: it renders them and
// compares the result with the kustomize bases and with what the product writes. It is a module of
// its own, because the gateway does not need Helm.
package charts
