// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package memory

import "sync"

// Use is what a Part of a Budget is for. It is a metric label.
type Use string

const (
	// Requests are requests with a deadline. They can use the whole budget.
	Requests Use = "requests"
	// Streams are long-running requests.
	Streams Use = "streams"
	// Bodies are request bodies that are kept to be sent again.
	Bodies Use = "bodies"
	// Tunnels are the receive buffers of connections through a tunnel, beyond what each connection
	// has anyway.
	Tunnels Use = "tunnels"
	// Unauthenticated are requests before authentication.
	Unauthenticated Use = "unauthenticated"
)

// uses returns each Use with the highest fraction of the budget that it can have.
func uses() map[Use]float64 {
	return map[Use]float64{Requests: 1, Streams: othersShare, Bodies: 1. / 8, Tunnels: 1. / 4, Unauthenticated: 1. / 8}
}

// othersShare is the fraction of the budget that all uses but Requests can have together.
const othersShare = 3. / 4

// Budget is the memory that others can make the process use. It is safe for concurrent use. Use
// NewBudget. A nil *Budget has no limit.
type Budget struct {
	total        int64
	parts        map[Use]*Part
	descriptions descriptions

	// mu guards everything below, and the parts.
	mu sync.Mutex
	// used is what all parts hold, others what all but Requests hold.
	used, others int64
}

// NewBudget returns a Budget of total bytes. It is a prometheus.Collector of its own metrics.
func NewBudget(total int64) *Budget {
	b := &Budget{total: total, parts: map[Use]*Part{}, descriptions: newDescriptions()}
	for use, fraction := range uses() {
		b.parts[use] = &Part{budget: b, use: use, limit: int64(fraction * float64(total)), owners: map[string]int64{}}
	}
	return b
}

// Part returns the part of the budget for a use.
func (b *Budget) Part(use Use) *Part {
	if b == nil {
		return nil
	}
	return b.parts[use]
}

// Part is the part of a Budget for one use. It is safe for concurrent use. A nil *Part has no
// limit.
type Part struct {
	budget *Budget
	use    Use
	limit  int64

	// Guarded by budget.mu.
	used, refusals int64
	owners         map[string]int64
}

// Limit returns how much the part can hold at most. 0 means no limit.
func (p *Part) Limit() int64 {
	if p == nil {
		return 0
	}
	return p.limit
}

// Take takes n bytes for an owner. It reports whether it could; otherwise it has no effect.
func (p *Part) Take(owner string, n int64) bool {
	if p == nil {
		return true
	}
	b := p.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	if p.owners[owner]+n > p.freeLocked() {
		p.refusals++
		return false
	}
	p.addLocked(owner, n)
	return true
}

// Give returns n bytes that an owner has taken.
func (p *Part) Give(owner string, n int64) {
	if p == nil {
		return
	}
	p.budget.mu.Lock()
	defer p.budget.mu.Unlock()
	p.addLocked(owner, -n)
}

// freeLocked returns how much is free for the part.
func (p *Part) freeLocked() int64 {
	b := p.budget
	free := min(p.limit-p.used, b.total-b.used)
	if p.use != Requests {
		free = min(free, int64(othersShare*float64(b.total))-b.others)
	}
	return free
}

func (p *Part) addLocked(owner string, n int64) {
	b := p.budget
	p.used += n
	b.used += n
	if p.use != Requests {
		b.others += n
	}
	if p.owners[owner] += n; p.owners[owner] == 0 {
		delete(p.owners, owner)
	}
}
