// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package dialer

import "sync"

// blockSize is the size of the pieces in which a backlog is stored, in bytes: four packets of the
// stock agent, which sends 4 KiB at a time.
const blockSize = 16 << 10

// block is a piece of a backlog. The bytes from read to written are still to be read.
type block struct {
	data          [blockSize]byte
	read, written int
	next          *block
}

// Blocks is a pool of blocks for backlogs. Connections share it, because one that kept blocks of
// its own would hold them unused most of the time. Its zero value is ready for use. It is safe for
// concurrent use; a nil *Blocks allocates each block.
type Blocks struct{ pool sync.Pool }

func (b *Blocks) get() *block {
	if b != nil {
		if l, ok := b.pool.Get().(*block); ok {
			return l
		}
	}
	return &block{}
}

func (b *Blocks) put(l *block) {
	if b != nil {
		l.read, l.written, l.next = 0, 0, nil
		b.pool.Put(l)
	}
}

// backlog is a queue of bytes, stored as a list of blocks. It is not safe for concurrent use.
type backlog struct {
	blocks      *Blocks
	first, last *block
	bytes       int
}

// write appends a copy of p. It fills a block before it takes another one. A peer that sends one
// byte at a time therefore cannot make the backlog take much more memory than its bytes.
func (b *backlog) write(p []byte) {
	b.bytes += len(p)
	for len(p) > 0 {
		switch {
		case b.last == nil:
			b.last = b.blocks.get()
			b.first = b.last
		case b.last.written == blockSize:
			b.last.next = b.blocks.get()
			b.last = b.last.next
		}
		n := copy(b.last.data[b.last.written:], p)
		b.last.written += n
		p = p[n:]
	}
}

// read moves bytes into p and returns their number.
func (b *backlog) read(p []byte) (n int) {
	for n < len(p) && b.first != nil {
		l := b.first
		k := copy(p[n:], l.data[l.read:l.written])
		n += k
		if l.read += k; l.read == l.written {
			b.dropFirst()
		}
	}
	b.bytes -= n
	return n
}

// drop discards everything and returns the number of bytes.
func (b *backlog) drop() (n int) {
	n, b.bytes = b.bytes, 0
	for b.first != nil {
		b.dropFirst()
	}
	return n
}

func (b *backlog) dropFirst() {
	l := b.first
	if b.first = l.next; b.first == nil {
		b.last = nil
	}
	b.blocks.put(l)
}
