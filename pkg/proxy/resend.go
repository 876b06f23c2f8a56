// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"

	"github.com/oam-dev/cluster-gateway/pkg/internal/memory"
)

// An API server that restarts refuses requests that are just arriving: it sends GOAWAY with the ID
// of the last stream that it processes, or REFUSED_STREAM. Such a request was not processed, and
// the HTTP/2 transport sends it again, provided that it can have the body again. A keptBody makes
// that possible.

// maxKeptBody is the size up to which a body is kept to be sent again. It covers nearly all writes:
// etcd accepts objects of 1.5 MiB at most, and most are a few KiB.
const maxKeptBody = 1 << 20

// errNotProcessed reports that the cluster did not process the request, and that it cannot be sent
// again because its body was not kept.
var errNotProcessed = errors.New("the API server did not process the request")

// bodyBudget is the memory for bodies that are kept, of all requests to all clusters. It is part of
// the memory of the process.
type bodyBudget struct {
	left   atomic.Int64
	memory *memory.Part
}

func newBodyBudget(size int64, m *memory.Part) *bodyBudget {
	b := &bodyBudget{memory: m}
	b.left.Store(size)
	return b
}

// take takes n bytes for a cluster, and reports whether there were as many.
func (b *bodyBudget) take(cluster string, n int) bool {
	if b.left.Add(-int64(n)) >= 0 && b.memory.Take(cluster, int64(n)) {
		return true
	}
	b.left.Add(int64(n))
	return false
}

func (b *bodyBudget) give(cluster string, n int) {
	b.left.Add(int64(n))
	b.memory.Give(cluster, int64(n))
}

// keptBody keeps what was read of a caller's body, so that it can be sent again. It stops to do so
// if the body is too large or the budget is used up; the body is then only passed on. Its attempts
// read the caller's body and never close it, which ReverseProxy does.
type keptBody struct {
	caller   io.Reader
	budget   *bodyBudget
	cluster  string
	progress *progress

	mu      sync.Mutex
	kept    []byte
	dropped bool
	// reading is set while an attempt reads from the caller.
	reading bool
	// err is the end of the caller's body.
	err     error
	current *bodyAttempt
}

// newKeptBody returns the body of req. The body is not kept if keep is false.
func newKeptBody(req *http.Request, budget *bodyBudget, p *progress, keep bool) *keptBody {
	return &keptBody{caller: req.Body, budget: budget, progress: p, dropped: !keep || req.ContentLength > maxKeptBody}
}

// attempt returns the whole body, to send it for the first time or again. It is an http.Request's
// GetBody.
func (b *keptBody) attempt() (io.ReadCloser, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.current != nil && (b.dropped || b.reading) {
		return nil, errNotProcessed
	}
	b.current = &bodyAttempt{body: b}
	return b.current, nil
}

// drop frees the memory. The body cannot be sent again after that.
func (b *keptBody) drop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.dropLocked()
}

func (b *keptBody) dropLocked() {
	b.dropped = true
	if n := cap(b.kept); n > 0 {
		b.budget.give(b.cluster, n)
	}
	b.kept = nil
}

func (b *keptBody) keepLocked(p []byte) {
	if b.dropped {
		return
	}
	need := len(b.kept) + len(p)
	if need > maxKeptBody {
		b.dropLocked()
		return
	}
	if old := cap(b.kept); need > old {
		size := min(max(need, 2*old, 4<<10), maxKeptBody)
		if !b.budget.take(b.cluster, size-old) {
			b.dropLocked()
			return
		}
		b.kept = append(make([]byte, 0, size), b.kept...)
	}
	b.kept = append(b.kept, p...)
}

// bodyAttempt is a keptBody as it is sent once.
type bodyAttempt struct {
	body *keptBody
	// read counts the bytes that were read.
	read   int
	closed bool
}

func (a *bodyAttempt) Read(p []byte) (int, error) {
	b := a.body
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case a.closed || a != b.current || b.reading:
		return 0, http.ErrBodyReadAfterClose
	case a.read < len(b.kept):
		n := copy(p, b.kept[a.read:])
		a.read += n
		return n, nil
	case b.err != nil:
		return 0, b.err
	}
	b.reading = true
	b.mu.Unlock()
	n, err := b.caller.Read(p)
	b.mu.Lock()
	b.reading = false
	b.keepLocked(p[:n])
	a.read += n
	b.err = err
	if err != nil && err != io.EOF { //nolint:errorlint // readers return it unwrapped
		b.progress.bodyFailed.Store(true)
	}
	return n, err
}

// Close ends the attempt. The caller's body stays open for another one.
func (a *bodyAttempt) Close() error {
	a.body.mu.Lock()
	defer a.body.mu.Unlock()
	a.closed = true
	return nil
}

// claimsIdempotency reports whether the caller says that the request can be repeated. net/http
// believes that, and repeats the request after failures that do not show whether it was processed,
// provided that it can have the body again.
func claimsIdempotency(h http.Header) bool {
	return h["Idempotency-Key"] != nil || h["X-Idempotency-Key"] != nil
}

// keepBody gives an outgoing request a body that can be sent again.
func (x *exchange) keepBody(req *http.Request) {
	if req.Body == nil {
		return
	}
	claimed := claimsIdempotency(req.Header)
	keep := !claimed && !x.attributes.upgrade && x.handler.cfg.KeptBodyBytes >= 0
	x.body = newKeptBody(req, x.handler.bodies, &x.progress, keep)
	x.body.cluster = x.lease.cluster.Name
	req.Body, _ = x.body.attempt() // the first attempt does not fail
	if !claimed {
		req.GetBody = x.body.attempt
	}
}
