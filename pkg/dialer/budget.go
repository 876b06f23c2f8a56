// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package dialer

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
)

const (
	// budgetBuffers is how many full receive buffers fit into a Budget.
	budgetBuffers = 4
	// MinReceiveBuffer is how many bytes each connection may hold when the Budget is used up.
	MinReceiveBuffer = 1 << 20
	// minWindow is the same for a connection whose carrier can wait (see Accept). Such a connection
	// works with little, so what it holds beyond that is taken from the Budget.
	minWindow = 64 << 10
)

// Memory is memory that several Budgets share. Take takes n bytes for a cluster, or returns false
// and takes none. Both methods must be safe for concurrent use, and must not block.
type Memory interface {
	Take(cluster string, n int64) bool
	Give(cluster string, n int64)
}

// Budget bounds the sum of the receive buffers of one cluster's connections: four full buffers. A
// user of one cluster who opens connections and does not read from them must not take the memory
// that other clusters need. A connection that is read keeps working when others have used the
// budget up: each may always hold MinReceiveBuffer.
//
// It is safe for concurrent use. A nil *Budget is no bound.
type Budget struct {
	limit  int64
	used   atomic.Int64
	blocks *Blocks
	// memory provides what a connection holds beyond MinReceiveBuffer. nil means that only limit
	// bounds it.
	memory  Memory
	cluster string
}

// NewBudget returns the budget of connections that each buffer up to receiveBuffer bytes
// (0: DefaultReceiveBuffer). Their backlogs use blocks, which several budgets may share.
func NewBudget(receiveBuffer int, blocks *Blocks) *Budget {
	if receiveBuffer <= 0 {
		receiveBuffer = DefaultReceiveBuffer
	}
	return &Budget{limit: int64(receiveBuffer) * budgetBuffers, blocks: blocks}
}

// account is what one connection holds of a Budget. The connection guards it. An account without a
// budget has no bound.
type account struct {
	budget *Budget
	// charged is what the connection has taken from Budget.memory. free is how many bytes it could
	// hold without that when it last took some.
	charged int64
	free    int
}

// take accounts for n bytes more of a connection that holds held bytes, of which the first free
// cost nothing. It returns false, and does nothing, if the connection may not have them.
func (a *account) take(held, n, free int) bool {
	b := a.budget
	if b == nil {
		return true
	}
	a.free = free
	if held+n > free {
		if b.used.Load()+int64(n) > b.limit {
			return false
		}
		more := a.beyondFree(held+n) - a.charged
		if more > 0 && b.memory != nil {
			if !b.memory.Take(b.cluster, more) {
				return false
			}
			a.charged += more
		}
	}
	b.used.Add(int64(n))
	return true
}

// add accounts for n bytes more that the connection has in any case.
func (a *account) add(n int) {
	if a.budget != nil {
		a.budget.used.Add(int64(n))
	}
}

// give accounts for n bytes less of a connection that holds held bytes.
func (a *account) give(held, n int) {
	b := a.budget
	if b == nil {
		return
	}
	b.used.Add(-int64(n))
	if less := a.charged - a.beyondFree(held-n); less > 0 {
		b.memory.Give(b.cluster, less)
		a.charged -= less
	}
}

// beyondFree returns how much of held is beyond what the connection may hold for nothing.
func (a *account) beyondFree(held int) int64 { return int64(max(0, held-a.free)) }

func (b *Budget) blockPool() *Blocks {
	if b == nil {
		return nil
	}
	return b.blocks
}

// Budgets makes Dialers whose connections share one Budget per cluster, over all Dialers of that
// cluster. All of them share one pool of blocks. It is safe for concurrent use. Use NewBudgets.
type Budgets struct {
	receiveBuffer int
	memory        Memory
	blocks        Blocks

	mu sync.Mutex
	// open has an entry for each cluster with a Dialer that is not closed.
	open map[string]*sharedBudget
}

// sharedBudget is a Budget and the number of its Dialers.
type sharedBudget struct {
	*Budget
	dialers int
}

// NewBudgets returns Budgets for connections that each buffer up to receiveBuffer bytes
// (0: DefaultReceiveBuffer). They take what they hold from m, unless it is nil.
func NewBudgets(receiveBuffer int, m Memory) *Budgets {
	return &Budgets{receiveBuffer: receiveBuffer, memory: m, open: map[string]*sharedBudget{}}
}

// Separate returns a Budget for a cluster that no Dialer shares.
func (b *Budgets) Separate(cluster string) *Budget {
	separate := NewBudget(b.receiveBuffer, &b.blocks)
	separate.memory, separate.cluster = b.memory, cluster
	return separate
}

// Dialer is like New. It hands the cluster's Budget to dial, for the connection that dial opens.
func (b *Budgets) Dialer(cluster string, dial func(ctx context.Context, network, address string, budget *Budget) (net.Conn, error)) Dialer {
	budget := b.acquire(cluster)
	return &budgetedDialer{
		Dialer: New(cluster, func(ctx context.Context, network, address string) (net.Conn, error) {
			return dial(ctx, network, address, budget)
		}),
		release: sync.OnceFunc(func() { b.release(cluster) }),
	}
}

func (b *Budgets) acquire(cluster string) *Budget {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.open[cluster]
	if s == nil {
		s = &sharedBudget{Budget: b.Separate(cluster)}
		b.open[cluster] = s
	}
	s.dialers++
	return s.Budget
}

func (b *Budgets) release(cluster string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s := b.open[cluster]; s.dialers > 1 {
		s.dialers--
	} else {
		delete(b.open, cluster)
	}
}

// budgetedDialer gives up its share of a Budget when it is closed. Its connections hold nothing
// then.
type budgetedDialer struct {
	Dialer
	release func()
}

// Close implements Dialer.
func (d *budgetedDialer) Close() error {
	err := d.Dialer.Close()
	d.release()
	return err
}
