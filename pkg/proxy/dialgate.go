// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"time"
)

// maxDials is how many connections to one cluster may be in the making at a time. A burst of
// kubectl exec needs some tens. Each costs a descriptor for as long as the cluster does not answer,
// and through a tunnel a dial of the agent.
const maxDials = 64

// dialGate limits the dials to one cluster, over all its versions, and with those to others. The
// dial of a canceled request counts until it has ended: http.Transport does not cancel it.
type dialGate struct {
	// own has a place for each dial to the cluster.
	own chan struct{}
	// first has a place for one dial that does not need a place in all, so that clusters that do not
	// answer cannot keep others from connecting.
	first chan struct{}
	// all has a place for each other dial, to any cluster. It is nil if there is no limit.
	all chan struct{}
}

// newDialGate returns the gate of a cluster. all is that of all clusters.
func newDialGate(all chan struct{}) dialGate {
	return dialGate{own: make(chan struct{}, maxDials), first: make(chan struct{}, 1), all: all}
}

// newDialLimit returns the places for the dials to all clusters. It is nil if there is no limit.
func newDialLimit(limit int) chan struct{} {
	if limit < 0 {
		return nil
	}
	return make(chan struct{}, limit)
}

// errTooManyDials reports that no dial ended for as long as one may take.
var errTooManyDials = errors.New("too many connections are being established")

// enter waits for a place, for as long as the request lasts and at most for limit. The caller calls
// leave after the dial.
func (g dialGate) enter(request context.Context, limit time.Duration) (leave func(), err error) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case g.own <- struct{}{}:
	case <-timer.C:
		return nil, errTooManyDials
	case <-request.Done():
		return nil, context.Cause(request)
	}
	if g.all == nil {
		return func() { <-g.own }, nil
	}
	select {
	case g.first <- struct{}{}:
		return func() { <-g.first; <-g.own }, nil
	default:
	}
	select {
	case g.all <- struct{}{}:
		return func() { <-g.all; <-g.own }, nil
	case g.first <- struct{}{}:
		return func() { <-g.first; <-g.own }, nil
	case <-timer.C:
		err = errTooManyDials
	case <-request.Done():
		err = context.Cause(request)
	}
	<-g.own
	return nil, err
}

// requestContext is the context of a request, which it makes available to the dial that is made for
// the request. http.Transport dials with a context that has the values of the request's, but does
// not end with it.
type requestContext struct{ context.Context }

type requestContextKey struct{}

// Value implements context.Context.
func (r *requestContext) Value(key any) any {
	if key == (requestContextKey{}) {
		return r.Context
	}
	return r.Context.Value(key)
}

// requestContextOf returns the context of the request for which a dial is made. It never ends if
// that is not known.
func requestContextOf(dialCtx context.Context) context.Context {
	if ctx, ok := dialCtx.Value(requestContextKey{}).(context.Context); ok {
		return ctx
	}
	return context.WithoutCancel(dialCtx)
}
