// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// The servers in this file are managed API servers that attack the gateway. Each is named for what
// it does. A server that repeats something does so until the gateway closes the connection.

// http1Server is an API server that reads a request, and then writes what talk writes.
func http1Server(t testing.TB, talk func(conn net.Conn)) *apiServer {
	t.Helper()
	return newAPIServer(t, func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		talk(conn)
	}, onlyHTTP1)
}

// writes is what a server does that writes a text and closes the connection.
func writes(text string) func(net.Conn) {
	return func(conn net.Conn) { _, _ = io.WriteString(conn, text) }
}

// repeats is what a server does that writes a text and then another one again and again.
func repeats(first, again string) func(net.Conn) {
	return func(conn net.Conn) {
		_, err := io.WriteString(conn, first)
		for err == nil {
			_, err = io.WriteString(conn, again)
		}
	}
}

// drips is repeats with a pause after each text.
func drips(first, again string) func(net.Conn) {
	return func(conn net.Conn) {
		_, err := io.WriteString(conn, first)
		for err == nil {
			time.Sleep(10 * time.Millisecond)
			_, err = io.WriteString(conn, again)
		}
	}
}

// holds is what a server does that writes a text, and then leaves the connection open.
func holds(text string) func(net.Conn) {
	return func(conn net.Conn) {
		_, _ = io.WriteString(conn, text)
		_, _ = io.Copy(io.Discard, conn)
	}
}

// h2Conn is the API server's end of an HTTP/2 connection.
type h2Conn struct {
	*http2.Framer
	conn net.Conn
}

// http2Server is an API server that calls talk for the first request of each connection, with the
// number of its stream. If reads is set, it goes on reading, and discards what it reads.
func http2Server(t testing.TB, reads bool, talk func(h h2Conn, stream uint32)) *apiServer {
	t.Helper()
	return newAPIServer(t, nil, func(server *httptest.Server) {
		server.Config.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){
			"h2": func(_ *http.Server, conn *tls.Conn, _ http.Handler) { serveHTTP2(conn, reads, talk) },
		}
	})
}

func serveHTTP2(conn *tls.Conn, reads bool, talk func(h h2Conn, stream uint32)) {
	br := bufio.NewReader(conn)
	if _, err := io.ReadFull(br, make([]byte, len(http2.ClientPreface))); err != nil {
		return
	}
	h := h2Conn{http2.NewFramer(conn, br), conn}
	_ = h.WriteSettings()
	for {
		frame, err := h.ReadFrame()
		if err != nil {
			return
		}
		if frame.Header().Type != http2.FrameHeaders {
			continue
		}
		stream := frame.Header().StreamID
		if !reads {
			talk(h, stream)
			return
		}
		talked := make(chan struct{})
		go func() { defer close(talked); talk(h, stream) }()
		_, _ = io.Copy(io.Discard, br)
		_ = conn.Close()
		<-talked
		return
	}
}

// hpackOK is ":status: 200" as HPACK encodes it.
const hpackOK = "\x88"

// answer writes the header of an answer that is not complete.
func (h h2Conn) answer(stream uint32) {
	_ = h.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: []byte(hpackOK), EndHeaders: true})
}

// forever calls write until it fails.
func forever(write func() error) {
	for write() == nil { //nolint:revive // nothing else is to be done
	}
}

// endlessContinuations sends a header that has no end.
func endlessContinuations(fragment string) func(h2Conn, uint32) {
	return func(h h2Conn, stream uint32) {
		_ = h.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: []byte(hpackOK)})
		forever(func() error { return h.WriteContinuation(stream, false, []byte(fragment)) })
	}
}

// decompressionBomb sends a small header that is large when it is decoded: it stores one long field
// in the table, and refers to it again and again.
func decompressionBomb(h h2Conn, stream uint32) {
	const length = 3 << 10
	// A literal field that is stored. Its name is "a", the length of its value 127 and the rest.
	rest := length - 127
	field := "\x40\x01a\x7f" + string([]byte{byte(rest&0x7f | 0x80), byte(rest >> 7)}) + strings.Repeat("x", length)
	_ = h.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: []byte(hpackOK + field)})
	forever(func() error { return h.WriteContinuation(stream, false, []byte(strings.Repeat("\xbe", 16<<10))) })
}

// floodsSettings changes its settings again and again. Each change has to be acknowledged.
func floodsSettings(h h2Conn, _ uint32) {
	forever(func() error {
		return h.WriteSettings(http2.Setting{ID: http2.SettingHeaderTableSize, Val: 1<<32 - 1}, http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1<<24 - 1})
	})
}

// floodsPings sends pings, each of which has to be answered.
func floodsPings(h h2Conn, _ uint32) { forever(func() error { return h.WritePing(false, [8]byte{1}) }) }

// floodsResets resets streams that do not exist.
func floodsResets(h h2Conn, stream uint32) {
	forever(func() error { return h.WriteRSTStream(stream+2, http2.ErrCodeCancel) })
}

// resetsStream ends each request without an answer.
func resetsStream(h h2Conn, stream uint32) {
	forever(func() error { return h.WriteRSTStream(stream, http2.ErrCodeInternal) })
}

// pushes sends an answer that nobody has asked for.
func pushes(h h2Conn, stream uint32) {
	forever(func() error {
		return h.WritePushPromise(http2.PushPromiseParam{StreamID: stream, PromiseID: 2, BlockFragment: []byte(hpackOK), EndHeaders: true})
	})
}

// overflowsWindow allows the gateway to send more than HTTP/2 can count.
func overflowsWindow(h h2Conn, _ uint32) {
	forever(func() error { return h.WriteWindowUpdate(0, 1<<31-1) })
}

// ignoresWindow sends more than the gateway allows it to.
func ignoresWindow(h h2Conn, stream uint32) {
	h.answer(stream)
	chunk := make([]byte, 16<<10)
	forever(func() error { return h.WriteData(stream, false, chunk) })
}

// dripsData sends one byte at a time.
func dripsData(h h2Conn, stream uint32) {
	h.answer(stream)
	forever(func() error {
		time.Sleep(10 * time.Millisecond)
		return h.WriteData(stream, false, []byte("x"))
	})
}

// hugeFrame announces a frame of 16 MiB.
func hugeFrame(h h2Conn, stream uint32) {
	_, err := h.conn.Write(binary.BigEndian.AppendUint32([]byte{0xff, 0xff, 0xff, byte(http2.FrameData), 0}, stream))
	for err == nil {
		_, err = h.conn.Write(make([]byte, 16<<10))
	}
}

// beforeTLS is an API server that talks before it has read anything, so that there is no TLS.
func beforeTLS(t testing.TB, talk func(net.Conn)) *apiServer {
	t.Helper()
	s := newAPIServer(t, ok)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = lis.Close() })
	go func() {
		for {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			go func() { defer conn.Close(); talk(conn) }()
		}
	}()
	s.URL = "https://" + lis.Addr().String()
	return s
}

// speaks is an API server whose TLS offers only this protocol.
func speaks(t testing.TB, protocol string) *apiServer {
	t.Helper()
	return newAPIServer(t, ok, func(s *httptest.Server) {
		s.EnableHTTP2 = false
		s.TLS = &tls.Config{NextProtos: []string{protocol}} //nolint:gosec // the default is TLS 1.2
	})
}

// confusesProtocols agrees to HTTP/2, and then answers in HTTP/1.1.
func confusesProtocols(t testing.TB) *apiServer {
	t.Helper()
	return newAPIServer(t, nil, func(server *httptest.Server) {
		server.Config.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){
			"h2": func(_ *http.Server, conn *tls.Conn, _ http.Handler) {
				defer conn.Close()
				holds("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")(conn)
			},
		}
	})
}

// answerWhole writes an answer without a body.
func (h h2Conn) answerWhole(stream uint32) {
	_ = h.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: []byte(hpackOK), EndHeaders: true, EndStream: true})
}
