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

// firstConnection lets one request dial while no connection is open, and has the others wait for what comes of it. On its own,
// http.Transport makes a dial and a TLS handshake for each request that finds no connection, to use one and close the rest, and
// goes on dialling for those whose callers have left; for a cluster that does not answer, that is as many dials as requests.
type firstConnection struct {
	next http.RoundTripper
	// open is how many connections there are.
	open *atomic.Int64

	mu      sync.Mutex
	attempt *attempt // under way; or nil
}

var _ utilnet.RoundTripperWrapper = (*firstConnection)(nil)

// attempt is a request that dials.
type attempt struct {
	done chan struct{}
	// err is why there is no connection; set before done is closed.
	err error
}

// errLeft is the outcome of an attempt whose request ended before its dial did.
var errLeft = errors.New("the request that dialled has ended")

func (f *firstConnection) RoundTrip(req *http.Request) (*http.Response, error) {
	for f.open.Load() == 0 {
		a, first := f.join()
		if first {
			return f.lead(a, req)
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
		if !errors.Is(a.err, errLeft) {
			closeBody(req)
			return nil, a.err
		}
	}
	return f.next.RoundTrip(req)
}

// join returns the attempt under way, or begins one.
func (f *firstConnection) join() (a *attempt, first bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.attempt == nil {
		f.attempt, first = &attempt{done: make(chan struct{})}, true
	}
	return f.attempt, first
}

func (f *firstConnection) lead(a *attempt, req *http.Request) (*http.Response, error) {
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
	// However this returns, nobody is left waiting.
	defer end(errLeft)
	ctx := httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { end(nil) }})
	resp, err := f.next.RoundTrip(req.WithContext(ctx))
	var de *dialer.Error
	if errors.As(err, &de) && req.Context().Err() == nil {
		end(err)
	}
	return resp, err
}

// WrappedRoundTripper implements utilnet.RoundTripperWrapper.
func (f *firstConnection) WrappedRoundTripper() http.RoundTripper { return f.next }
