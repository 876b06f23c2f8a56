// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package docs is the documentation of the project. Its tests keep the pages true: they compare
// them with the flags, metrics, conditions, imports, files, tests and Makefile targets that exist.
//
// The pages in docs/reference are generated. Run
//
//	go test ./docs -update
//
// after a change of a flag or a metric.
package docs
