// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package health

import (
	"container/heap"
	"time"
)

// queue orders clusters by the time of their next probe.
type queue []*tracked

var _ heap.Interface = (*queue)(nil)

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].due.Before(q[j].due) }
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

// Push implements heap.Interface.
func (q *queue) Push(x any) {
	t := x.(*tracked) //nolint:errcheck // nothing else is ever pushed
	t.index = len(*q)
	*q = append(*q, t)
}

// Pop implements heap.Interface.
func (q *queue) Pop() any {
	last := (*q)[len(*q)-1]
	(*q)[len(*q)-1] = nil
	*q = (*q)[:len(*q)-1]
	last.index = -1
	return last
}

// schedule adds a cluster to the queue, or changes its due time.
func (q *queue) schedule(t *tracked, due time.Time) {
	t.due = due
	if t.index >= 0 {
		heap.Fix(q, t.index)
		return
	}
	heap.Push(q, t)
}

// drop removes a cluster from the queue.
func (q *queue) drop(t *tracked) {
	if t.index >= 0 {
		heap.Remove(q, t.index)
	}
}

// next returns the cluster that is due first, or nil if the queue is empty.
func (q queue) next() *tracked {
	if len(q) == 0 {
		return nil
	}
	return q[0]
}
