// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package measure sends the same requests by several routes and measures the time.
//
// Routes take turns within each round, in a different order each time. So a disturbance of the
// machine affects all of them alike, and the figures of one round can be compared as pairs. No
// client has a rate limit, and all clients refuse compression: the benchmark measures the route,
// not the client's rate limiter or the server's gzip.
package measure
