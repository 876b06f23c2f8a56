// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"encoding/binary"

	"github.com/oam-dev/cluster-gateway/pkg/internal/untrusted"
)

// Opcodes of WebSocket frames, and what a frame can hold (RFC 6455, 5.2 and 5.5).
const (
	opcodeBinary = 0x2
	opcodeClose  = 0x8
	finalFrame   = 0x80
	// maxControlPayload is the most that a Close frame can hold.
	maxControlPayload = 125
	// closeNormal is the code for a normal end, and closeInternalError for an end that the client did
	// not cause (RFC 6455, 7.4.1).
	closeNormal        = 1000
	closeInternalError = 1011
)

// The channels of exec and attach on which the API server reports how the command has ended, as a
// Status (k8s.io/client-go/tools/remotecommand/websocket.go).
const errorChannel = 3

// webSocketFrames follows the frames of a WebSocket. The zero value is ready for use.
type webSocketFrames struct {
	frameProgress
	header [10]byte
	first  bool // no byte of the payload has passed
	webSocketState
	// before is the state before the frame that is not complete.
	before webSocketState
}

type webSocketState struct {
	// fragmented is set in the middle of a message that has several frames.
	fragmented bool
	// closed is set when a Close frame has passed, and reported when a Status has.
	closed, reported bool
}

var _ frames = (*webSocketFrames)(nil)

// pass implements frames.
func (f *webSocketFrames) pass(p []byte) {
	for len(p) > 0 {
		if f.left == 0 {
			if f.have == 0 {
				f.before = f.webSocketState
			}
			f.header[f.have] = p[0]
			f.have++
			p = p[1:]
			if f.have == f.headerSize() {
				f.begin()
			}
			continue
		}
		if f.first {
			f.reported = f.reported || f.header[0]&0xf == opcodeBinary && p[0] == errorChannel
			f.first = false
		}
		p = f.payload(p)
	}
}

// drop implements frames.
func (f *webSocketFrames) drop() {
	f.frameProgress, f.webSocketState = frameProgress{}, f.before
}

// headerSize returns the size of the header that begins with the bytes so far, without the mask.
func (f *webSocketFrames) headerSize() int {
	if f.have < 2 {
		return 2
	}
	switch f.header[1] & 0x7f {
	case 126:
		return 4
	case 127:
		return 10
	default:
		return 2
	}
}

// begin begins a frame whose header is complete.
func (f *webSocketFrames) begin() {
	var size uint64
	switch f.headerSize() {
	case 4:
		size = uint64(binary.BigEndian.Uint16(f.header[2:]))
	case 10:
		size = binary.BigEndian.Uint64(f.header[2:])
	default:
		size = uint64(f.header[1] & 0x7f)
	}
	if f.header[1]&0x80 != 0 {
		size += 4 // the mask, which servers do not use
	}
	f.start(size)
	f.first = f.left > 0
	switch opcode := f.header[0] & 0xf; {
	case opcode == opcodeClose:
		f.closed = true
	case opcode < opcodeClose:
		f.fragmented = f.header[0]&finalFrame == 0
	}
}

// closing implements frames: it returns a Status on the channel for errors, and a Close frame.
func (f *webSocketFrames) closing(message string, withStatus bool) []byte {
	if f.partial() > 0 || f.closed {
		return nil
	}
	var text []byte
	code := uint16(closeInternalError)
	if withStatus && !f.fragmented && !f.reported {
		text = appendFrame(text, opcodeBinary, append([]byte{errorChannel}, closingStatus(message)...))
		code = closeNormal // client-go forgets the Status after any other code
	}
	reason := untrusted.Limit(message, maxControlPayload-2)
	return appendFrame(text, opcodeClose, append(binary.BigEndian.AppendUint16(nil, code), reason...))
}

// hasReported implements frames.
func (f *webSocketFrames) hasReported() bool { return f.reported }

// appendFrame appends a frame with at most 65,535 bytes.
func appendFrame(to []byte, opcode byte, payload []byte) []byte {
	to = append(to, finalFrame|opcode)
	if len(payload) < 126 {
		to = append(to, byte(len(payload))) //nolint:gosec // see above
	} else {
		to = binary.BigEndian.AppendUint16(append(to, 126), uint16(len(payload))) //nolint:gosec // see above
	}
	return append(to, payload...)
}
