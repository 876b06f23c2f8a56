// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package stats computes summaries, ratios and differences with confidence intervals, and the
// growth of a cost.
//
// A measurement is a list with one figure for each round. Routes take turns within a round, so two
// routes have figures with the same index under the same conditions, and these are compared as
// pairs. The figure of a failed round is NaN: it counts as a failure, and never as a fast or slow
// request.
package stats
