// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package health probes the clusters and writes their state to their Secrets, where every replica
// and every client sees it.
//
// A [Monitor] runs in the leader. It asks each cluster's API server whether it is ready, over the
// same transport as requests to the proxy subresource. The interval has jitter. It is shorter after
// a failure and longer after many failures. Changes of clusters and agents
// ([Monitor.ClusterChanged], [Monitor.AgentsChanged]) start a probe at once. [assess] turns the
// outcome of a probe into conditions. The Monitor patches the annotations of the Secret and records
// an Event only when the status or the reason of a condition changes. It also writes a change of
// the API server's version.
//
// One goroutine waits for the next probe that is due. Each probe runs in a goroutine of its own,
// and at most [Config.Concurrency] run at a time. Between probes, a cluster is only an entry in a
// heap.
package health
