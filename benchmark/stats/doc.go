// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package stats turns what was measured into figures that can be compared: summaries, ratios and differences with confidence
// intervals, and the law by which a cost grows.
//
// A measurement is a list with one figure for each round. Routes are measured in turn within a round, so the figures of two routes
// at the same index were taken under the same conditions, and are compared as pairs. A round that failed is NaN: it counts as a
// failure, and never as a fast or a slow one.
package stats
