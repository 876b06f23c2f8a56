// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package boundaries holds the test of who may import whom, each rule with its reason (docs/architecture.md has the picture).
package boundaries
