// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"fmt"

	"github.com/oam-dev/cluster-gateway/pkg/cluster"
)

// class decides which limits a request counts against.
type class int

const (
	// classRequest is a request with a deadline.
	classRequest class = iota
	// classStream is a long-running request.
	classStream
	// classUpgrade is an upgrade that the cluster has not answered yet. It counts as a request, and
	// it also has a place among the streams, so that it need not be cut off when the cluster
	// accepts it.
	classUpgrade
	// classInternal is a request of the gateway's own. These have no limit.
	classInternal

	classes
)

// String names requests of the class, as part of a sentence.
func (c class) String() string {
	if c == classStream || c == classUpgrade {
		return "long-running requests (such as watches, logs, exec, attach and port-forward)"
	}
	return "requests in flight"
}

// limits are how many requests and streams one cluster may have at a time. 0 or less means no
// limit.
type limits struct{ requests, streams int }

// counts are how many requests of each class a cluster has.
type counts [classes]int

// requests and streams return how many count against each limit. An upgrade that the cluster has
// not answered counts against both.
func (n counts) requests() int { return n[classRequest] + n[classUpgrade] }
func (n counts) streams() int  { return n[classStream] + n[classUpgrade] }

// exceeded returns the limit that one more request of the class would exceed.
func (l limits) exceeded(n counts, as class) (limited class, limit int, exceeded bool) {
	switch {
	case (as == classRequest || as == classUpgrade) && l.requests > 0 && n.requests() >= l.requests:
		return classRequest, l.requests, true
	case (as == classStream || as == classUpgrade) && l.streams > 0 && n.streams() >= l.streams:
		return classStream, l.streams, true
	default:
		return 0, 0, false
	}
}

// shareFactor decides how much of a cluster's places one caller can have: at most this many times
// the places that are free. So one caller alone gets two thirds of them, and two get two fifths
// each: there are always some left for somebody new (a dynamic threshold, as switches use it for
// their buffers: Choudhury and Hahne, 1998).
const shareFactor = 2

// exceedsShare returns how many requests the caller has, if one more of the class would be more
// than the caller's share.
func (l limits) exceedsShare(all, caller counts, as class) (limited class, had int, exceeded bool) {
	requests, freeRequests := caller.requests(), l.requests-all.requests()
	streams, freeStreams := caller.streams(), l.streams-all.streams()
	switch {
	case (as == classRequest || as == classUpgrade) && l.requests > 0 && requests >= shareFactor*freeRequests:
		return classRequest, requests, true
	case (as == classStream || as == classUpgrade) && l.streams > 0 && streams >= shareFactor*freeStreams:
		return classStream, streams, true
	default:
		return 0, 0, false
	}
}

// limitError is a request that was refused because its cluster has too many like it.
type limitError struct {
	cluster *cluster.Cluster
	class   class
	limit   int
	// caller is set if the limit is the share of one caller, who has limit requests.
	caller bool
	// memory is not 0 if the limit is the memory for such requests, of all clusters together.
	memory int64
	// metrics are the cluster's, to count the refusal.
	metrics *clusterMetrics
}

func (e *limitError) Error() string {
	if e.memory != 0 {
		return fmt.Sprintf("the gateway has no memory for more %s to cluster %q: all clusters together can use %d MiB for them, and no cluster more than is left "+
			"for the others (--memory-budget)", e.class, e.cluster.Name, e.memory>>20)
	}
	if e.caller {
		return fmt.Sprintf("you already have %d %s to cluster %q through this gateway, which is your share of what is left", e.limit, e.class, e.cluster.Name)
	}
	return fmt.Sprintf("cluster %q already has %d %s through this gateway, which is the limit", e.cluster.Name, e.limit, e.class)
}
