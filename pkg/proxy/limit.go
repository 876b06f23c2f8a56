// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"fmt"

	"github.com/oam-dev/cluster-gateway/pkg/cluster"
)

// class decides which limit a request counts against.
type class int

const (
	// classRequest is a request with a deadline.
	classRequest class = iota
	// classStream is a long-running request.
	classStream
	// classInternal is a request of the gateway's own. These have no limit.
	classInternal

	classes
)

// limits are how many requests of each class one cluster may have at a time. 0 or less means no
// limit.
type limits [classes]int

// limitError is a request that was refused because its cluster has too many of its class.
type limitError struct {
	cluster *cluster.Cluster
	class   class
	limit   int
	// metrics are the cluster's, to count the refusal.
	metrics *clusterMetrics
}

func (e *limitError) Error() string {
	return fmt.Sprintf("cluster %q already has %d %s through this gateway, which is the limit", e.cluster.Name, e.limit, e.class)
}

// String names requests of the class, as part of a sentence.
func (c class) String() string {
	if c == classStream {
		return "long-running requests (such as watches, logs, exec, attach and port-forward)"
	}
	return "requests in flight"
}
