// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package boundaries states which package of this module may import which, each rule with its
// reason. Its test compares the rules with the code. docs/architecture.md shows them as a picture.
package boundaries
