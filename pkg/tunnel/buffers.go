// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"sync"

	"google.golang.org/grpc/mem"
)

// packetBuffer holds what the stock agent sends as one message: 4 KiB of a connection, and what goes around them.
const packetBuffer = 5 << 10

// buffers lends gRPC the memory that messages are received in. gRPC's own pool has no size between 4 and 16 KiB, and clears all of a
// buffer each time: for an agent's packets that was a tenth of what a download cost the gateway.
type buffers struct {
	packets, frames sync.Pool
}

var _ mem.BufferPool = (*buffers)(nil)

// frameBuffer is the largest HTTP/2 frame that gRPC reads.
const frameBuffer = 16 << 10

// Get implements mem.BufferPool. What is in the buffer is not cleared: gRPC writes over it before it reads it.
func (b *buffers) Get(length int) *[]byte {
	switch {
	case length <= packetBuffer:
		return get(&b.packets, length, packetBuffer)
	case length <= frameBuffer:
		return get(&b.frames, length, frameBuffer)
	}
	p := make([]byte, length)
	return &p
}

func get(pool *sync.Pool, length, size int) *[]byte {
	p, ok := pool.Get().(*[]byte)
	if !ok {
		b := make([]byte, size)
		p = &b
	}
	*p = (*p)[:length]
	return p
}

// Put implements mem.BufferPool.
func (b *buffers) Put(p *[]byte) {
	switch cap(*p) {
	case packetBuffer:
		b.packets.Put(p)
	case frameBuffer:
		b.frames.Put(p)
	}
}
