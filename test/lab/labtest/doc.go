// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package labtest runs the tests of a package on one lab that they share:
//
//	func TestMain(m *testing.M) { labtest.Main(m, start) }
package labtest
