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
	// unbudgeted is how many bytes each connection may hold when the Budget is used up.
	unbudgeted = 1 << 20
)

// Budget bounds the sum of the receive buffers of one cluster's connections: four full buffers. A
// user of one cluster who opens connections and does not read from them must not take the memory
// that other clusters need. A connection that is read keeps working when others have used the
// budget up: each may always hold 1 MiB.
//
// It is safe for concurrent use. A nil *Budget is no bound.
type Budget struct {
	limit  int64
	used   atomic.Int64
	blocks *Blocks
}

// NewBudget returns the budget of connections that each buffer up to receiveBuffer bytes
// (0: DefaultReceiveBuffer). Their backlogs use blocks, which several budgets may share.
func NewBudget(receiveBuffer int, blocks *Blocks) *Budget {
	if receiveBuffer <= 0 {
		receiveBuffer = DefaultReceiveBuffer
	}
	return &Budget{limit: int64(receiveBuffer) * budgetBuffers, blocks: blocks}
}

// add accounts for n bytes more, or less if n is negative.
func (b *Budget) add(n int) {
	if b != nil {
		b.used.Add(int64(n))
	}
}

// allows reports whether a connection that holds held bytes may take n more.
func (b *Budget) allows(held, n int) bool {
	return b == nil || held+n <= unbudgeted || b.used.Load()+int64(n) <= b.limit
}

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
// (0: DefaultReceiveBuffer).
func NewBudgets(receiveBuffer int) *Budgets {
	return &Budgets{receiveBuffer: receiveBuffer, open: map[string]*sharedBudget{}}
}

// Separate returns a Budget that no Dialer of a cluster shares.
func (b *Budgets) Separate() *Budget { return NewBudget(b.receiveBuffer, &b.blocks) }

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
		s = &sharedBudget{Budget: b.Separate()}
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
