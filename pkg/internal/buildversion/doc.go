// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package buildversion returns the version of the program: the one that the Makefile sets with
// linker flags, or, for a program that go install has built, the version of its module.
package buildversion
