// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptrace"
	"sync"
	"sync/atomic"

	utilnet "k8s.io/apimachinery/pkg/util/net"

	"github.com/oam-dev/cluster-gateway/pkg/dialer"
)

// firstConnection lets one request dial while no connection is open, and makes the others wait for
// the outcome. http.Transport by itself dials and negotiates TLS for each request that finds no
// connection, uses one connection and closes the rest. It continues to dial for requests whose
// callers have left. A cluster that does not answer would get as many dials as requests.
type firstConnection struct {
	next http.RoundTripper
	// open counts the established connections.
	open *atomic.Int64

	mu      sync.Mutex
	attempt *attempt // the one in progress, or nil
}

var _ utilnet.RoundTripperWrapper = (*firstConnection)(nil)

// attempt is a dial, made by a request for all those that wait.
type attempt struct {
	done chan struct{}
	// err is the reason why there is no connection. It is set before done is closed.
	err error
}

// errRequestEnded is the outcome of an attempt whose request ended before the dial did.
var errRequestEnded = errors.New("the request that dialed has ended")

func (f *firstConnection) RoundTrip(req *http.Request) (*http.Response, error) {
	for f.open.Load() == 0 {
		a, first := f.join()
		if first {
			return f.dial(a, req)
		}
		select {
		case <-a.done:
		case <-req.Context().Done():
			closeBody(req)
			return nil, context.Cause(req.Context())
		}
		if a.err == nil {
			break
		}
		if !errors.Is(a.err, errRequestEnded) {
			closeBody(req)
			return nil, a.err
		}
	}
	return f.next.RoundTrip(req)
}

// join returns the attempt in progress, or starts one.
func (f *firstConnection) join() (a *attempt, first bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.attempt == nil {
		f.attempt, first = &attempt{done: make(chan struct{})}, true
	}
	return f.attempt, first
}

// dial sends a request for which a connection has to be made first.
func (f *firstConnection) dial(a *attempt, req *http.Request) (*http.Response, error) {
	var once sync.Once
	end := func(err error) {
		once.Do(func() {
			f.mu.Lock()
			f.attempt = nil
			f.mu.Unlock()
			a.err = err
			close(a.done)
		})
	}
	// No request must be left waiting, however this one returns.
	defer end(errRequestEnded)
	ctx := httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { end(nil) }})
	resp, err := f.next.RoundTrip(req.WithContext(ctx))
	var de *dialer.Error
	if (errors.As(err, &de) || errors.Is(err, errTooManyDials)) && req.Context().Err() == nil {
		end(err)
	}
	return resp, err
}

// WrappedRoundTripper implements utilnet.RoundTripperWrapper.
func (f *firstConnection) WrappedRoundTripper() http.RoundTripper { return f.next }
