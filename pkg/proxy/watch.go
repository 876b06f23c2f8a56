// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"time"
)

// watchEndSpread is the time over which watches end whose connection is about to be closed, so that
// their clients do not all start new ones at once.
const watchEndSpread = 10 * time.Second

var errConnectionClosing = errors.New("the connection to the cluster is about to be closed")

// watchBody is the body of a watch. When the gateway shuts down, the connection is about to be
// closed, or the caller has lost the permission, it ends without an error, as it does when an API
// server ends a watch: the client starts a new one. Any other end is an error.
type watchBody struct {
	io.ReadCloser
	ctx context.Context
	// stop ends waiting for the connection to be closed.
	stop func() bool
}

func (x *exchange) newWatchBody(body io.ReadCloser) *watchBody {
	stop := context.AfterFunc(x.lease.closing, func() {
		timer := time.NewTimer(rand.N(watchEndSpread))
		defer timer.Stop()
		select {
		case <-timer.C:
			x.cancel(errConnectionClosing)
		case <-x.ctx.Done():
		}
	})
	return &watchBody{ReadCloser: body, ctx: x.ctx, stop: stop}
}

func (b *watchBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if cause := context.Cause(b.ctx); err != nil && (errors.Is(cause, errShuttingDown) || errors.Is(cause, errConnectionClosing) || errors.Is(cause, errPermissionLost)) {
		err = io.EOF
	}
	return n, err
}

func (b *watchBody) Close() error {
	b.stop()
	return b.ReadCloser.Close()
}
