// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package report contains the results of a benchmark run, compares them with the targets, and
// writes them in several formats: the predecessor's table as text and Markdown, JSON, input for
// benchstat, and one HTML page with plots.
//
// Every format starts with the problems of the run, if there are any, and with the conditions of
// the run.
package report
