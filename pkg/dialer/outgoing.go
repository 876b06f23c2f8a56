// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package dialer

// MaxPacket is the largest number of bytes that TakeOutgoing returns at once. The stock agent reads
// from its connections in pieces of 4 KiB. Larger pieces cost fewer packets on this side, and they
// are small enough for the connections of an agent to take turns.
const MaxPacket = 32 << 10

// outgoing is a queue of bytes to send, in pieces of at most MaxPacket bytes. It is not safe for
// concurrent use.
type outgoing struct {
	pieces [][]byte
	bytes  int
}

// write appends a copy of p. It fills the last piece before it begins another one.
func (o *outgoing) write(p []byte) {
	o.bytes += len(p)
	if last := len(o.pieces) - 1; last >= 0 {
		k := min(MaxPacket-len(o.pieces[last]), len(p))
		o.pieces[last] = append(o.pieces[last], p[:k]...)
		p = p[k:]
	}
	for len(p) > 0 {
		k := min(MaxPacket, len(p))
		o.pieces = append(o.pieces, append([]byte(nil), p[:k]...))
		p = p[k:]
	}
}

// take removes and returns the first piece, or nil if there is none.
func (o *outgoing) take() []byte {
	if len(o.pieces) == 0 {
		return nil
	}
	p := o.pieces[0]
	o.pieces[0] = nil
	if o.pieces = o.pieces[1:]; len(o.pieces) == 0 {
		o.pieces = nil
	}
	o.bytes -= len(p)
	return p
}

func (o *outgoing) drop() { o.pieces, o.bytes = nil, 0 }
