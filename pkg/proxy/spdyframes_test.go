// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"net/http"
	"slices"
	"testing"

	"github.com/moby/spdystream/spdy"
)

// opened returns the frame with which a client opens a stream.
func opened(t testing.TB, id spdy.StreamId, headers http.Header) []byte {
	t.Helper()
	var sent bytes.Buffer
	framer, err := spdy.NewFramer(&sent, &sent)
	if err != nil {
		t.Fatal(err)
	}
	if err := framer.WriteFrame(&spdy.SynStreamFrame{StreamId: id, Headers: headers}); err != nil {
		t.Fatal(err)
	}
	return sent.Bytes()
}

func spdyData(id, flags byte, payload ...byte) []byte {
	return append([]byte{0, 0, 0, id, flags, 0, 0, byte(len(payload))}, payload...) //nolint:gosec // it is short
}

func TestSPDYFrames(t *testing.T) {
	t.Parallel()
	errors := opened(t, 1, http.Header{"Streamtype": {"error"}})
	output := opened(t, 1, http.Header{"Streamtype": {"stdout"}})
	reply := []byte{0x80, 3, 0, 2, 0, 0, 0, 4, 0, 0, 0, 1}
	for name, test := range map[string]struct {
		client, server []byte
		closes         bool
	}{
		"nothing":                      {errors, nil, true},
		"whole frames":                 {errors, joined(reply, spdyData(3, 0, 'a'), spdyData(3, spdyFin)), true},
		"half a header":                {errors, spdyData(3, 0, 'a')[:5], false},
		"half a frame":                 {errors, spdyData(3, 0, 'a', 'b')[:9], false},
		"a Status":                     {errors, spdyData(1, 0, '{', '}'), false},
		"no Status":                    {errors, spdyData(1, spdyFin), false},
		"nothing on the stream":        {errors, spdyData(1, 0), true},
		"a control frame like an end":  {errors, []byte{0x80, 0, 0, 1, spdyFin, 0, 0, 0}, true},
		"the client has sent nothing":  {nil, nil, false},
		"the client has not sent all":  {errors[:len(errors)-1], nil, false},
		"more than the first stream":   {joined(errors, output, []byte("garbage")), nil, true},
		"another stream is first":      {joined(output, errors), nil, false},
		"the client sends data first":  {joined(spdyData(1, 0), errors), nil, false},
		"the client sends garbage":     {append([]byte{0x80, 3, 0, 1, 0, 0, 0, 20}, make([]byte, 20)...), nil, false},
		"the headers are too large":    {append([]byte{0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff}, make([]byte, 9000)...), nil, false},
		"the headers become too large": {opened(t, 1, http.Header{"Streamtype": {"error"}, "A": {string(make([]byte, 1<<16))}}), nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, size := range []int{1, 2, 3, 7, 1 << 20} {
				f := &spdyFrames{}
				for piece := range slices.Chunk(test.client, size) {
					f.sent(piece)
				}
				for piece := range slices.Chunk(test.server, size) {
					f.pass(piece)
				}
				got := f.closing("why", true)
				if (len(got) > 0) != test.closes || test.closes && !bytes.HasPrefix(got, []byte{0, 0, 0, 1, spdyFin, 0}) {
					t.Errorf("in pieces of %d: %q", size, got)
				}
				if len(f.closing("why", false)) > 0 {
					t.Error("a client that expects no Status gets one")
				}
				if f.partial() > 0 {
					checkDrop(t, f)
				}
			}
		})
	}
}

// FuzzSPDYClient shows that what a client sends is held within limits.
func FuzzSPDYClient(f *testing.F) {
	f.Add(opened(f, 1, http.Header{"Streamtype": {"error"}}), uint16(3))
	f.Add([]byte{0x80, 3, 0, 1, 0, 0, 0xff, 0xff}, uint16(0))
	f.Fuzz(func(t *testing.T, sent []byte, size uint16) {
		followed := &spdyFrames{}
		for piece := range slices.Chunk(sent, int(size)+1) {
			before := bytes.Clone(piece)
			followed.sent(piece)
			if len(followed.first) > spdyHeader+maxSPDYHeaders || followed.done && followed.first != nil {
				t.Fatalf("%d bytes are held", len(followed.first))
			}
			if !bytes.Equal(before, piece) {
				t.Fatal("what the client sends is changed")
			}
		}
	})
}

// FuzzWholeFrames shows that whatever an API server sends arrives unchanged, but for the frame in
// which it breaks off, and that the client can be told why between two frames.
func FuzzWholeFrames(f *testing.F) {
	f.Add(joined(spdyData(3, 0, 'a'), spdyData(1, 0, '{')), uint16(2), true)
	f.Add(joined(frame(opcodeBinary, 1, 'a'), frame(opcodeClose)), uint16(0), false)
	f.Add(append([]byte{finalFrame | opcodeBinary, 127, 0, 0, 0, 0, 0, 1, 0, 0}, make([]byte, 70_000)...), uint16(9000), false)
	f.Fuzz(func(t *testing.T, sent []byte, size uint16, overSPDY bool) {
		newFrames := func() frames {
			if overSPDY {
				return &spdyFrames{}
			}
			return &webSocketFrames{}
		}
		reader := &wholeFrames{from: pieces{bytes.NewReader(sent), int(size) + 1}, frames: newFrames(), hold: true}
		var got bytes.Buffer
		if _, err := got.ReadFrom(reader); err != nil {
			t.Fatal(err)
		}
		if !bytes.HasPrefix(sent, got.Bytes()) {
			t.Fatal("something else arrives")
		}
		all, arrived := newFrames(), newFrames()
		all.pass(sent)
		arrived.pass(got.Bytes())
		missing := uint64(len(sent) - got.Len()) //nolint:gosec // it is a prefix
		switch {
		case missing > 0 && (arrived.partial() > 0 || missing != all.partial() || missing > maxWholeFrame):
			t.Fatalf("%d bytes are missing, of a frame of %d bytes", missing, all.partial())
		case missing == 0 && all.partial() > 0 && all.size() <= maxWholeFrame:
			t.Fatal("a part of a frame arrives")
		case arrived.partial() != reader.frames.partial() || arrived.hasReported() != reader.frames.hasReported():
			t.Fatal("the frames were not followed")
		}
	})
}

// pieces reads at most size bytes at a time.
type pieces struct {
	from *bytes.Reader
	size int
}

func (p pieces) Read(b []byte) (int, error) { return p.from.Read(b[:min(len(b), p.size)]) }
