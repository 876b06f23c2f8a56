// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha1" //nolint:gosec // RFC 6455, 4.2.2
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/remotecommand"
	"k8s.io/client-go/rest"
	clientremotecommand "k8s.io/client-go/tools/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	spdyutil "k8s.io/streaming/pkg/httpstream/spdy"
)

// frame returns a frame with these payload bytes.
func frame(opcode byte, payload ...byte) []byte { return appendFrame(nil, opcode, payload) }

func TestWebSocketFrames(t *testing.T) {
	t.Parallel()
	large := frame(opcodeBinary, bytes.Repeat([]byte{1}, 60_000)...)
	huge := append([]byte{finalFrame | opcodeBinary, 127, 0, 0, 0, 0, 0, 1, 0x11, 0x70}, bytes.Repeat([]byte{1}, 70_000)...)
	for name, test := range map[string]struct {
		sent           []byte
		status, closes bool
	}{
		"nothing":                {nil, true, true},
		"whole frames":           {joined(frame(opcodeBinary, 1, 'a'), large, huge, frame(9), frame(opcodeBinary)), true, true},
		"half a header":          {[]byte{finalFrame | opcodeBinary}, false, false},
		"half of a long header":  {large[:3], false, false},
		"half a frame":           {large[:len(large)-1], false, false},
		"half of a huge frame":   {huge[:50_000], false, false},
		"a Close frame":          {frame(opcodeClose, 3, 232), false, false},
		"a Status":               {frame(opcodeBinary, errorChannel, '{', '}'), false, true},
		"in a message":           {[]byte{opcodeBinary, 2, 1, 'a'}, false, true},
		"ping in a message":      {joined([]byte{opcodeBinary, 2, 1, 'a'}, frame(9)), false, true},
		"after a message":        {joined([]byte{opcodeBinary, 2, 1, 'a'}, []byte{finalFrame, 1, 'b'}), true, true},
		"a frame with a mask":    {[]byte{finalFrame | opcodeBinary, 0x80 | 1, 1, 2, 3, 4, 'a'}, true, true},
		"a ping like an error":   {frame(9, errorChannel), true, true},
		"data like a Status":     {frame(opcodeBinary, 1, errorChannel), true, true},
		"the mask is not enough": {[]byte{finalFrame | opcodeBinary, 0x80 | 1, 1, 2, 3, 4}, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, size := range []int{1, 2, 3, 7, 1 << 20} {
				f := passed(test.sent, size)
				got := f.closing("why", true)
				status := bytes.HasPrefix(got, []byte{finalFrame | opcodeBinary}) && bytes.Contains(got, []byte(`"message":"why"`))
				code := uint16(closeInternalError)
				if status {
					code = closeNormal
				}
				closes := bytes.HasSuffix(got, append(binary.BigEndian.AppendUint16([]byte{finalFrame | opcodeClose, 5}, code), "why"...))
				if status != test.status || closes != test.closes || (len(got) > 0) != test.closes {
					t.Errorf("in pieces of %d: %q", size, got)
				}
				if without := f.closing("why", false); bytes.Contains(without, []byte("message")) {
					t.Errorf("%q has a Status", without)
				}
				checkDrop(t, f)
			}
		})
	}
}

func joined(all ...[]byte) []byte { return bytes.Join(all, nil) }

// FuzzWebSocketFrames shows that a frame can be added after whole frames, and nowhere else.
func FuzzWebSocketFrames(f *testing.F) {
	f.Add([]byte("a"), uint16(5), uint16(2))
	f.Add(bytes.Repeat([]byte("b"), 300), uint16(126), uint16(0))
	f.Fuzz(func(t *testing.T, content []byte, size, pieceSize uint16) {
		piece := int(pieceSize) + 1
		var sent []byte
		for payload := range slices.Chunk(content, int(size)+1) {
			sent = appendFrame(sent, opcodeBinary, payload[:min(len(payload), 1<<16-1)])
			if f := passed(sent[:len(sent)-1], piece); len(f.closing("why", true)) > 0 {
				t.Fatal("a frame is added in a frame")
			}
			if f := passed(sent, piece); len(f.closing("why", false)) == 0 {
				t.Fatal("no frame can be added after whole frames")
			}
		}
	})
}

// checkDrop checks that a frame can be added where the last one is dropped, unless the connection
// has ended.
func checkDrop(t *testing.T, f frames) {
	t.Helper()
	if f.partial() == 0 {
		return
	}
	if f.drop(); f.partial() != 0 || len(f.closing("why", true)) == 0 {
		t.Error("no frame can be added although the incomplete one was dropped")
	}
}

// passed follows what is sent in pieces of this size.
func passed(sent []byte, size int) frames {
	f := &webSocketFrames{}
	for piece := range slices.Chunk(sent, size) {
		f.pass(piece)
	}
	return f
}

// execServer is an API server with a command that writes "hello" and then waits. breaks ends the
// connection without a word, after it has sent something.
type execServer struct {
	*apiServer
	conns chan net.Conn
	// partial is a frame with output that is not complete.
	partial []byte
}

func (s *execServer) breaks(t *testing.T, partial bool) {
	conn := <-s.conns
	if partial {
		if _, err := conn.Write(s.partial); err != nil {
			t.Error(err)
		}
	}
	_ = conn.(*tls.Conn).NetConn().Close()
}

func webSocketExecServer(t *testing.T) *execServer {
	t.Helper()
	s := &execServer{conns: make(chan net.Conn, 1), partial: appendFrame(nil, opcodeBinary, bytes.Repeat([]byte{1}, 5000))[:3000]}
	s.apiServer = newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		sum := sha1.Sum([]byte(r.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11")) //nolint:gosec // RFC 6455, 4.2.2
		_, _ = fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
			"Sec-WebSocket-Protocol: %s\r\nSec-WebSocket-Accept: %s\r\n\r\n", remotecommand.StreamProtocolV5Name, base64.StdEncoding.EncodeToString(sum[:]))
		_, _ = conn.Write(appendFrame(nil, opcodeBinary, []byte("\x01hello")))
		s.conns <- conn
		_, _ = io.Copy(io.Discard, conn)
	}, onlyHTTP1)
	return s
}

func spdyExecServer(t *testing.T) *execServer {
	t.Helper()
	// Stream 3 is the second one of the client: its output.
	s := &execServer{conns: make(chan net.Conn, 1), partial: append([]byte{0, 0, 0, 3, 0, 0, 0x13, 0x88}, make([]byte, 3000)...)}
	s.apiServer = newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		if _, err := httpstream.Handshake(r, w, []string{remotecommand.StreamProtocolV4Name}); err != nil {
			t.Error(err)
			return
		}
		opened := make(chan httpstream.Stream, 2)
		keeper := &connKeeper{ResponseWriter: w}
		conn := spdyutil.NewResponseUpgrader().UpgradeResponse(keeper, r, func(stream httpstream.Stream, _ <-chan struct{}) error {
			opened <- stream
			return nil
		})
		if conn == nil {
			t.Error("no upgrade")
			return
		}
		for range 2 {
			if stream := <-opened; stream.Headers().Get(corev1.StreamType) == corev1.StreamTypeStdout {
				_, _ = stream.Write([]byte("hello"))
			}
		}
		s.conns <- keeper.conn
		<-conn.CloseChan()
	}, onlyHTTP1)
	return s
}

// connKeeper keeps the connection that is taken over.
type connKeeper struct {
	http.ResponseWriter
	conn net.Conn
}

func (k *connKeeper) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(k.ResponseWriter).Hijack()
	k.conn = conn
	return conn, rw, err
}

// TestUpgradeTellsWhyItEnds uses the clients of kubectl. kubectl prints their error.
func TestUpgradeTellsWhyItEnds(t *testing.T) {
	t.Parallel()
	ends := map[string]struct {
		end  func(t *testing.T, g *gateway, s *execServer)
		want string
	}{
		"the cluster goes away":            {func(t *testing.T, _ *gateway, s *execServer) { s.breaks(t, false) }, "its API server has closed it unexpectedly"},
		"the cluster goes away in a frame": {func(t *testing.T, _ *gateway, s *execServer) { s.breaks(t, true) }, "its API server has closed it unexpectedly"},
		"the cluster is deleted":           {func(_ *testing.T, g *gateway, _ *execServer) { g.delete("a") }, "the cluster is not registered any more, or in another way"},
		"the gateway stops": {func(_ *testing.T, g *gateway, _ *execServer) {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			g.handler.EndStreams(ctx)
		}, "the gateway is shutting down; run the command again"},
	}
	protocols := map[string]struct {
		start    func(*testing.T) *execServer
		executor func(config *rest.Config, url string) (clientremotecommand.Executor, error)
	}{
		"WebSocket": {webSocketExecServer, func(config *rest.Config, url string) (clientremotecommand.Executor, error) {
			return clientremotecommand.NewWebSocketExecutor(config, http.MethodGet, url)
		}},
		"SPDY": {spdyExecServer, func(config *rest.Config, address string) (clientremotecommand.Executor, error) {
			parsed, err := url.Parse(address)
			if err != nil {
				return nil, err
			}
			return clientremotecommand.NewSPDYExecutor(config, http.MethodPost, parsed)
		}},
	}
	for protocol, by := range protocols {
		for name, test := range ends {
			t.Run(protocol+"/"+name, func(t *testing.T) {
				t.Parallel()
				s := by.start(t)
				g := newGateway(t, nil)
				g.set(s.secret("a"))
				config := &rest.Config{Host: g.server.URL, TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
				executor, err := by.executor(config, g.url("a", "/api/v1/namespaces/default/pods/p/exec?stdout=true"))
				if err != nil {
					t.Fatal(err)
				}
				out := &notifier{text: "hello", seen: make(chan struct{})}
				ended := make(chan error, 1)
				go func() {
					ended <- executor.StreamWithContext(t.Context(), clientremotecommand.StreamOptions{Stdout: out})
				}()
				within(t, maxWait, "the output", func() { <-out.seen })
				test.end(t, g, s)
				within(t, maxWait, "the end", func() {
					want := `the connection to cluster "a" has ended: ` + test.want
					if got := <-ended; got == nil || got.Error() != want {
						t.Errorf("got  %v\nwant %s", got, want)
					}
				})
				if got := out.got.String(); got != "hello" {
					t.Errorf("the output is %q", got)
				}
				eventually(t, "nothing in flight", func() bool { return g.handler.streams.Load() == 0 })
			})
		}
	}
}

// notifier closes a channel when all of a text has been written to it.
type notifier struct {
	text string
	seen chan struct{}
	got  strings.Builder
}

func (n *notifier) Write(p []byte) (int, error) {
	if n.got.Write(p); n.got.String() == n.text {
		close(n.seen)
	}
	return len(p), nil
}

func TestEndReason(t *testing.T) {
	t.Parallel()
	gone := errors.New("client gone")
	for name, test := range map[string]struct {
		cause, err error
		forwarding bool
		want       string
	}{
		"permission": {errPermissionLost, io.ErrClosedPipe, false, "you may no longer do this"},
		"client":     {gone, io.ErrClosedPipe, false, ""},
		"end":        {nil, io.EOF, false, "its API server has closed it unexpectedly"},
		"replica":    {nil, io.ErrUnexpectedEOF, true, "the replica of the gateway"},
		"other":      {nil, errors.New("the agent has gone"), false, "the agent has gone"},
		"escapes":    {nil, errors.New("closed by the agent: \x1b]0;a\aname\r\nmore"), false, "closed by the agent: ]0;a name more"},
	} {
		ctx, cancel := context.WithCancelCause(t.Context())
		if test.cause != nil {
			cancel(test.cause)
		}
		x := &exchange{ctx: ctx, forwarding: test.forwarding}
		if got := x.endReason(test.err); !strings.HasPrefix(got, test.want) || (got == "") != (test.want == "") {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
		cancel(nil)
	}
}
