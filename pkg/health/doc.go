// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package health finds out how the clusters are, and writes it where everybody sees it: on their Secrets.
//
// A [Monitor] runs in the gateway replica that leads. It asks each cluster's API server whether it is ready, over the transport that
// requests take, at an interval with jitter; after a failure sooner, and after many later. What is told to it
// ([Monitor.ClusterChanged], [Monitor.AgentsChanged]) makes it look at once. [assess] turns what a probe came back with into
// conditions. Nothing is written while they stay as they are: a patch of the Secret's annotations and an Event are made when the
// status or the reason of a condition changes, or the API server's version does.
//
// One goroutine waits for the next probe that is due; a probe is a goroutine while it lasts, and there are no more than
// [Config.Concurrency] of them. Between probes a cluster is an entry in a heap.
package health
