// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package report holds what a run of the benchmark found, judges it, and writes it down: as the predecessor's table in text and
// Markdown, as JSON, as lines for benchstat, and as one HTML page with plots.
//
// Every form begins with what is wrong with the run, if anything is, and with the conditions it was made under.
package report
