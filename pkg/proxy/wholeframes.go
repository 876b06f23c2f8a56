// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import "io"

// frames follows the frames of one direction of an upgraded connection as they pass, to add frames
// where that is possible.
type frames interface {
	// pass takes notice of bytes that pass.
	pass(p []byte)
	// partial returns how many bytes of a frame have passed that is not complete, and size how many
	// the frame has, as far as that is known.
	partial() uint64
	size() uint64
	// drop forgets the frame that is not complete. It has not reached the client.
	drop()
	// closing returns the frames that tell the client why the connection ends: if withStatus is set,
	// with a Status as the outcome of the command. It is empty where no frame can be added.
	closing(message string, withStatus bool) []byte
	// hasReported is whether the outcome of the command has passed.
	hasReported() bool
}

// frameProgress is how much of a frame has passed.
type frameProgress struct {
	// have counts the bytes of the header, and left those of the payload that have not passed.
	have int
	left uint64
	// all is the size of the frame, once its header is complete.
	all uint64
}

// start begins the payload of a frame whose header is complete.
func (f *frameProgress) start(payload uint64) {
	f.left, f.all = payload, payload+uint64(f.have) //nolint:gosec // a few bytes
	if payload == 0 {
		f.all = 0
	}
	f.have = 0
}

// payload takes notice of bytes of the payload, and returns those after it.
func (f *frameProgress) payload(p []byte) []byte {
	n := min(f.left, uint64(len(p)))
	if f.left -= n; f.left == 0 {
		f.all = 0
	}
	return p[n:]
}

func (f *frameProgress) partial() uint64 {
	if f.all > 0 {
		return f.all - f.left
	}
	return uint64(f.have) //nolint:gosec // a few bytes
}

func (f *frameProgress) size() uint64 { return max(f.all, f.partial()) }

const (
	// maxWholeFrame is the size of the largest frame that is held until it is complete. API servers
	// send what they read at once, at most 32 KiB, and a few bytes before it.
	maxWholeFrame = 33 << 10
	// wholeFramesBuffer holds such a frame and the next read.
	wholeFramesBuffer = maxWholeFrame + copyBufferSize
)

// wholeFrames reads frames, and holds what it has of a frame until the rest is there. So when a
// connection breaks, it does so between two frames, and the client can be told why. Large frames
// pass as they come.
type wholeFrames struct {
	from   io.Reader
	frames frames
	// hold is whether parts of frames are held.
	hold bool
	// buffer begins with whole frames that can be read, up to ready. Up to end, it has a part of the
	// next one.
	buffer           []byte
	next, ready, end int
	err              error
}

var _ io.Reader = (*wholeFrames)(nil)

// Read implements io.Reader.
func (w *wholeFrames) Read(p []byte) (int, error) {
	if !w.hold {
		n, err := w.from.Read(p)
		w.frames.pass(p[:n])
		return n, err
	}
	for w.next == w.ready {
		if w.err != nil {
			return 0, w.err
		}
		w.fill()
	}
	n := copy(p, w.buffer[w.next:w.ready])
	w.next += n
	return n, nil
}

// fill reads once.
func (w *wholeFrames) fill() {
	if w.buffer == nil {
		w.buffer = make([]byte, wholeFramesBuffer)
	}
	held := copy(w.buffer, w.buffer[w.ready:w.end])
	n, err := w.from.Read(w.buffer[held:])
	w.next, w.end, w.err = 0, held+n, err
	w.frames.pass(w.buffer[held:w.end])
	w.ready = w.end
	partial := w.frames.partial()
	if partial > uint64(w.end) || w.frames.size() > maxWholeFrame { //nolint:gosec // not negative
		return // a part of the frame has been read, or it is large
	}
	w.ready -= int(partial) //nolint:gosec // at most w.end
	if w.err != nil && partial > 0 {
		w.frames.drop()
	}
}
