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

// dialGate limits the dials to one cluster, over all its versions. The dial of a canceled request
// counts until it has ended: http.Transport does not cancel it.
type dialGate chan struct{}

func newDialGate() dialGate { return make(dialGate, maxDials) }

// errTooManyDials reports that no dial ended for as long as one may take.
var errTooManyDials = errors.New("too many connections are being established")

// enter waits for a place, for as long as the request lasts and at most for limit. The caller
// leaves the gate after the dial.
func (g dialGate) enter(request context.Context, limit time.Duration) error {
	select {
	case g <- struct{}{}:
		return nil
	default:
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case g <- struct{}{}:
		return nil
	case <-timer.C:
		return errTooManyDials
	case <-request.Done():
		return context.Cause(request)
	}
}

func (g dialGate) leave() { <-g }

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
