// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package measure sends the same work by several routes and takes the time.
//
// Routes take turns within each round, in another order each time, so that whatever disturbs the machine hits all of them alike, and a
// round's figures can be compared as pairs. No client here has a rate limit, and all refuse compression: what is measured is
// the way, not the client's patience or the server's gzip.
package measure
