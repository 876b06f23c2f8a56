// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"sync"

	"google.golang.org/grpc/mem"
)

// packetBuffer is the size of a buffer for one message of the stock agent, in bytes: 4 KiB of a
// connection's data, and its envelope.
const packetBuffer = 5 << 10

// buffers is the pool from which gRPC takes buffers for the messages that it receives. gRPC's own
// pool has no size between 4 and 16 KiB, and clears the whole buffer each time. For an agent's
// packets, that was a tenth of a download's cost. Its zero value is ready for use. It is safe for
// concurrent use.
type buffers struct {
	packets, frames sync.Pool
}

var _ mem.BufferPool = (*buffers)(nil)

// frameBuffer is the size of the largest HTTP/2 frame that gRPC reads, in bytes.
const frameBuffer = 16 << 10

// Get implements mem.BufferPool. The buffer is not cleared: gRPC overwrites it before it reads it.
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
