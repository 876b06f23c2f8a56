// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package memory shares the memory of the process among those who can make it grow.
//
// A client that does not read, a cluster that sends much, or a connection that is not authenticated
// yet makes the gateway hold bytes for it. All such bytes are taken from one [Budget], which
// follows from the memory limit of the process (see [ProcessLimit]). What does not fit is refused,
// and the process is not killed.
//
// Some buffers cannot be accounted for byte by byte, such as the receive windows of HTTP/2. For
// these, the largest amount that they can hold is taken when the request is admitted.
//
// # Fairness
//
// A [Part] of the budget is for one use, such as long-running requests. Within it, an owner, such
// as a cluster, may hold as much as is still free, and not more. So an owner that is alone can have
// half of a part; with a second greedy one, each has a third, and so on. There is always some left
// for the next one.
//
// Ordinary requests come first: all other parts together leave a quarter of the budget to them.
package memory
