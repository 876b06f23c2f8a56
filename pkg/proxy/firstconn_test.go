// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/oam-dev/cluster-gateway/pkg/dialer"
)

// However many requests there are for a cluster that does not answer, one dials at a time. When it
// leaves, another one dials, and all get the outcome.
func TestOneDialsAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var dials atomic.Int64
		fail := make(chan struct{})
		f := &firstConnection{open: new(atomic.Int64), next: &http.Transport{
			DialTLSContext: func(_ context.Context, _, address string) (net.Conn, error) {
				dials.Add(1)
				<-fail
				return nil, &dialer.Error{Cluster: "a", Stage: dialer.StageEndpoint, Address: address, Err: errors.New("it is dead")}
			},
		}}
		send := func(ctx context.Context) <-chan error {
			outcome := make(chan error, 1)
			go func() {
				req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://a/", nil)
				if err == nil {
					_, err = f.RoundTrip(req) //nolint:bodyclose // there is no answer
				}
				outcome <- err
			}()
			return outcome
		}
		wantDials := func(want int64) {
			t.Helper()
			synctest.Wait() // for all to dial or to wait
			if got := dials.Load(); got != want {
				t.Errorf("%d dials, want %d", got, want)
			}
		}

		ctx, leave := context.WithCancel(t.Context())
		first := send(ctx)
		wantDials(1)
		var others []<-chan error
		for range 20 {
			others = append(others, send(t.Context()))
		}
		wantDials(1)
		leave()
		if err := <-first; !errors.Is(err, context.Canceled) {
			t.Errorf("the first: %v, want that it was canceled", err)
		}
		wantDials(2) // the second by the next in line
		close(fail)
		for _, other := range others {
			var de *dialer.Error
			if err := <-other; !errors.As(err, &de) || de.Stage != dialer.StageEndpoint {
				t.Errorf("a request that waited: %v, want the failure of the dial", err)
			}
		}
		wantDials(2)
	})
}
