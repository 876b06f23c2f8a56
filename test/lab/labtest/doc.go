// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package labtest runs the tests of a package on one lab that they share.
//
// An end-to-end test fills the lab itself:
//
//	func TestMain(m *testing.M) { labtest.Main(m, start) }
//
// An integration test needs API servers only. It has the build tag integration
// and is in a file beside the package that it tests:
//
//	var hub *lab.Cluster
//
//	func TestMain(m *testing.M) {
//		labtest.MainAPIServers(m, map[string]**lab.Cluster{"hub": &hub})
//	}
package labtest
