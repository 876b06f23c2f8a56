// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"

	"golang.org/x/net/http2"
)

// refusingServer is an API server whose first connection refuses every stream, and whose other
// connections serve.
type refusingServer struct {
	*apiServer
	// refused and processed count the requests on the first connection and on the others.
	refused, processed atomic.Int64
}

// newRefusingServer starts one. refuse is called for each stream of the first connection, when its
// header has arrived. The server answers how many bytes a request has.
func newRefusingServer(t testing.TB, refuse func(f *http2.Framer, stream uint32)) *refusingServer {
	t.Helper()
	s := &refusingServer{}
	var connections atomic.Int64
	s.apiServer = newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		s.processed.Add(1)
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			t.Error(err)
		}
		_, _ = io.WriteString(w, strconv.FormatInt(n, 10))
	}, func(server *httptest.Server) {
		server.Config.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){
			"h2": func(hs *http.Server, conn *tls.Conn, _ http.Handler) {
				if connections.Add(1) > 1 {
					(&http2.Server{}).ServeConn(conn, &http2.ServeConnOpts{Handler: hs.Handler}) //nolint:staticcheck // deprecated in favor of net/http, which cannot serve one connection
					return
				}
				s.refuseAll(conn, refuse)
			},
		}
	})
	return s
}

func (s *refusingServer) refuseAll(conn *tls.Conn, refuse func(f *http2.Framer, stream uint32)) {
	br := bufio.NewReader(conn)
	if _, err := io.ReadFull(br, make([]byte, len(http2.ClientPreface))); err != nil {
		return
	}
	f := http2.NewFramer(conn, br)
	_ = f.WriteSettings()
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return
		}
		if frame.Header().Type == http2.FrameHeaders {
			s.refused.Add(1)
			refuse(f, frame.Header().StreamID)
		}
	}
}

// goAway refuses a stream as an API server does that restarts.
func goAway(f *http2.Framer, _ uint32) { _ = f.WriteGoAway(0, http2.ErrCodeNo, nil) }

// reset refuses a stream with a code, and then the connection.
func reset(code http2.ErrCode) func(*http2.Framer, uint32) {
	return func(f *http2.Framer, stream uint32) {
		_ = f.WriteRSTStream(stream, code)
		_ = f.WriteGoAway(stream, http2.ErrCodeNo, nil)
	}
}

// A request that the cluster says it did not process is sent again, whole.
func TestUnprocessedRequestIsSentAgain(t *testing.T) {
	for name, refuse := range map[string]func(*http2.Framer, uint32){
		"GOAWAY": goAway, "REFUSED_STREAM": reset(http2.ErrCodeRefusedStream),
	} {
		// The second is larger than the flow control window, so that it is refused before it was
		// sent completely.
		for _, size := range []int{20, 900 << 10} {
			s := newRefusingServer(t, refuse)
			g := newGateway(t, nil)
			g.set(s.secret("a"))
			resp, body := g.do(http.MethodPost, "a", "/api/v1/namespaces", bytes.NewReader(make([]byte, size)))
			if resp.StatusCode != http.StatusOK || body != strconv.Itoa(size) || s.processed.Load() != 1 || s.refused.Load() == 0 {
				t.Errorf("%s, %d bytes: %s %q, processed %d times after %d refusals", name, size, resp.Status, body, s.processed.Load(), s.refused.Load())
			}
			if left := g.handler.bodies.left.Load(); left != DefaultKeptBodyBytes {
				t.Errorf("%s: %d bytes of the budget are left, want all %d", name, left, int64(DefaultKeptBodyBytes))
			}
		}
	}
}

// A request whose body is not kept is not sent again, and its caller learns that it was not carried
// out.
func TestUnprocessedRequestIsReported(t *testing.T) {
	for name, test := range map[string]struct {
		size int
		kept int64
	}{
		"too large": {maxKeptBody + 1, 0},
		"no memory": {20, -1},
	} {
		s := newRefusingServer(t, goAway)
		g := newGateway(t, func(c *Config) { c.KeptBodyBytes = test.kept })
		g.set(s.secret("a"))
		resp, body := g.do(http.MethodPost, "a", "/api/v1/namespaces", bytes.NewReader(make([]byte, test.size)))
		if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") != "1" ||
			!strings.Contains(body, "the request was not carried out") || s.processed.Load() != 0 {
			t.Errorf("%s: %s, processed %d times: %s", name, resp.Status, s.processed.Load(), body)
		}
	}
}

// A body that turns out to be larger than what is left of the budget is not kept, and gives back
// what it took.
func TestKeptBodyExceedsBudget(t *testing.T) {
	const left = 4 << 10
	budget := newBodyBudget(left, nil)
	req := httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(make([]byte, 2*left)))
	b := newKeptBody(req, budget, &progress{}, true)
	first, err := b.attempt()
	if err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, first); n != 2*left || err != nil {
		t.Errorf("the first attempt read %d bytes, %v", n, err)
	}
	if _, err := b.attempt(); !errors.Is(err, errNotProcessed) {
		t.Errorf("a second attempt: %v, want %v", err, errNotProcessed)
	}
	if n := budget.left.Load(); n != left {
		t.Errorf("%d bytes of the budget are left, want %d", n, left)
	}
}

// A PROTOCOL_ERROR does not mean that a request was not processed, so nothing is sent again, with a
// body or without.
func TestNothingIsSentAgainAfterProtocolError(t *testing.T) {
	for method, body := range map[string]string{http.MethodPost: "{}", http.MethodDelete: ""} {
		s := newRefusingServer(t, reset(http2.ErrCodeProtocol))
		g := newGateway(t, nil)
		g.set(s.secret("a"))
		resp, text := g.do(method, "a", "/api/v1/namespaces/n", strings.NewReader(body))
		if resp.StatusCode != http.StatusBadGateway || s.refused.Load() != 1 || s.processed.Load() != 0 {
			t.Errorf("%s: %s, sent %d times: %s", method, resp.Status, s.refused.Load()+s.processed.Load(), text)
		}
	}
}

// A caller's claim that a request can be repeated does not get its body kept: net/http would then
// repeat the request after failures of any kind.
func TestIdempotencyKeyKeepsNoBody(t *testing.T) {
	s := newRefusingServer(t, goAway)
	g := newGateway(t, nil)
	g.set(s.secret("a"))
	resp, body := g.do(http.MethodPost, "a", "/api/v1/namespaces", strings.NewReader("{}"), "Idempotency-Key", "x")
	if resp.StatusCode != http.StatusBadGateway || s.processed.Load() != 0 {
		t.Errorf("%s, processed %d times: %s", resp.Status, s.processed.Load(), body)
	}
}

func TestKeptBody(t *testing.T) {
	text := strings.Repeat("0123456789", 10_000)
	budget := newBodyBudget(maxKeptBody, nil)
	var p progress
	b := newKeptBody(&http.Request{Body: io.NopCloser(iotest.HalfReader(strings.NewReader(text)))}, budget, &p, true)
	first, err := b.attempt()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(first, make([]byte, 12_345)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		again, err := b.attempt()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(again); err != nil || string(got) != text {
			t.Errorf("another attempt: %d bytes, %v, want %d", len(got), err, len(text))
		}
	}
	if _, err := first.Read(make([]byte, 1)); !errors.Is(err, http.ErrBodyReadAfterClose) {
		t.Errorf("the first attempt after another: %v", err)
	}
	if left := budget.left.Load(); left > int64(maxKeptBody-len(text)) {
		t.Errorf("%d bytes left, with %d kept", left, len(text))
	}
	b.drop()
	if _, err := b.attempt(); !errors.Is(err, errNotProcessed) {
		t.Errorf("an attempt with a body that was dropped: %v", err)
	}
	if left := budget.left.Load(); left != maxKeptBody {
		t.Errorf("%d bytes left after the body was dropped, want %d", left, maxKeptBody)
	}
	if p.bodyFailed.Load() {
		t.Error("the body counts as failed")
	}
}
