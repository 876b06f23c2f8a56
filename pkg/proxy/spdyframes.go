// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"encoding/binary"
	"io"
	"sync/atomic"

	"github.com/moby/spdystream/spdy"
	corev1 "k8s.io/api/core/v1"
)

// spdyProtocol is the SPDY of exec, attach and port-forward.
const spdyProtocol = "SPDY/3.1"

const (
	// spdyHeader is the size of the header of a SPDY frame.
	spdyHeader = 8
	// spdyFin ends a stream, in the flags of a frame.
	spdyFin = 0x1
	// maxSPDYHeaders limits the frame that begins the stream for errors, and its headers.
	maxSPDYHeaders = 4 << 10
)

// spdyFrames follows the frames of a SPDY connection. The zero value is ready for use.
//
// The client opens a stream for errors, on which the API server reports how the command has ended.
// The headers of all streams are compressed together, so only those of the first stream can be read
// without following all of them. Clients of Kubernetes open the stream for errors first.
type spdyFrames struct {
	frameProgress
	header   [spdyHeader]byte
	reported bool
	// before is reported before the frame that is not complete.
	before bool

	// errors is the ID of the stream for errors. It is 0 until it is known.
	errors atomic.Uint32
	// first is what the client has sent, until its first frame is complete. done is set then.
	first []byte
	done  bool
}

var _ frames = (*spdyFrames)(nil)

// sent takes notice of what the client sends.
func (f *spdyFrames) sent(p []byte) {
	if f.done {
		return
	}
	f.first = append(f.first, p[:min(len(p), spdyHeader+maxSPDYHeaders-len(f.first))]...)
	if len(f.first) < spdyHeader {
		return
	}
	size := int(spdyLength(f.first)) + spdyHeader
	switch {
	case size > spdyHeader+maxSPDYHeaders:
	case len(f.first) < size:
		return
	default:
		f.errors.Store(errorStream(f.first[:size]))
	}
	f.first, f.done = nil, true
}

// errorStream returns the ID of the stream that a frame opens, if that is the one for errors.
func errorStream(frame []byte) uint32 {
	framer, err := spdy.NewFramerWithOptions(io.Discard, bytes.NewReader(frame),
		spdy.WithMaxControlFramePayloadSize(maxSPDYHeaders), spdy.WithMaxHeaderFieldSize(maxSPDYHeaders), spdy.WithMaxHeaderCount(16))
	if err != nil {
		return 0
	}
	read, err := framer.ReadFrame()
	if err != nil {
		return 0
	}
	opens, ok := read.(*spdy.SynStreamFrame)
	if !ok || opens.Headers.Get(corev1.StreamType) != corev1.StreamTypeError {
		return 0
	}
	return uint32(opens.StreamId)
}

func spdyLength(header []byte) uint32 { return binary.BigEndian.Uint32(header[4:]) & 0xffffff }

// pass implements frames.
func (f *spdyFrames) pass(p []byte) {
	for len(p) > 0 {
		if f.left > 0 {
			p = f.payload(p)
			continue
		}
		if f.have == 0 {
			f.before = f.reported
		}
		n := copy(f.header[f.have:], p)
		f.have += n
		if p = p[n:]; f.have < spdyHeader {
			return
		}
		length := spdyLength(f.header[:])
		// The first bit distinguishes control frames, so it is not in the ID of a stream.
		if id := f.errors.Load(); id != 0 && binary.BigEndian.Uint32(f.header[:]) == id && (length > 0 || f.header[4]&spdyFin != 0) {
			f.reported = true
		}
		f.start(uint64(length))
	}
}

// drop implements frames.
func (f *spdyFrames) drop() { f.frameProgress, f.reported = frameProgress{}, f.before }

// closing implements frames: it returns a Status on the stream for errors, and ends that.
func (f *spdyFrames) closing(message string, withStatus bool) []byte {
	id := f.errors.Load()
	if f.partial() > 0 || !withStatus || f.reported || id == 0 {
		return nil
	}
	status := closingStatus(message)
	frame := binary.BigEndian.AppendUint32(nil, id)
	frame = binary.BigEndian.AppendUint32(frame, spdyFin<<24|uint32(len(status))) //nolint:gosec // the message is short
	return append(frame, status...)
}

// hasReported implements frames.
func (f *spdyFrames) hasReported() bool { return f.reported }
