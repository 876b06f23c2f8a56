// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/dialer"
)

// stuckDialer makes dials that do not end before their context, and counts those in progress.
func stuckDialer(c *Config, inProgress *atomic.Int64) {
	c.Dialers = func(c *cluster.Cluster, _ dialer.Purpose) (dialer.Dialer, error) {
		return dialer.New(c.Name, func(ctx context.Context, _, _ string) (net.Conn, error) {
			inProgress.Add(1)
			defer inProgress.Add(-1)
			<-ctx.Done()
			return nil, ctx.Err()
		}), nil
	}
}

// The dial for an upgrade ends with its request: nobody else would use the connection.
func TestCanceledUpgradeEndsItsDial(t *testing.T) {
	var dials atomic.Int64
	g := newGateway(t, func(c *Config) { stuckDialer(c, &dials); c.DialTimeout = time.Hour })
	g.set(secretWith("a", "endpoint", "https://127.0.0.1:1", "token", "x"))
	for range 5 {
		conn := g.startUpgrade("a", "/")
		eventually(t, "the dial starts", func() bool { return dials.Load() == 1 })
		_ = conn.Close()
		eventually(t, "the dial ends", func() bool { return dials.Load() == 0 })
	}
}

// However many requests there are, and whether they are canceled or not, a cluster has a limited
// number of dials.
func TestDialsAreLimited(t *testing.T) {
	var dials atomic.Int64
	g := newGateway(t, func(c *Config) { stuckDialer(c, &dials); c.DialTimeout = time.Hour })
	g.set(secretWith("a", "endpoint", "https://127.0.0.1:1", "token", "x"))
	// A canceled ordinary request leaves its dial behind, because another one may use the
	// connection.
	for n := int64(1); n <= 3; n++ {
		ctx, cancel := context.WithCancel(t.Context())
		left := make(chan struct{})
		go func() {
			defer close(left)
			req, _ := http.NewRequestWithContext(ctx, http.MethodGet, g.url("a", "/"), nil)
			if resp, err := g.client.Do(req); err == nil {
				_ = resp.Body.Close()
			}
		}()
		eventually(t, "the dial starts", func() bool { return dials.Load() == n })
		cancel()
		<-left
	}
	for range maxDials + 10 {
		g.startUpgrade("a", "/")
	}
	eventually(t, "the limit is reached", func() bool { return dials.Load() == maxDials })
	for range 50 {
		time.Sleep(time.Millisecond) // the others must not dial
		if n := dials.Load(); n > maxDials {
			t.Fatalf("%d dials, want %d at most", n, maxDials)
		}
	}
}

// A request that gets no place within the time of one dial fails.
func TestTooManyDials(t *testing.T) {
	var dials atomic.Int64
	g := newGateway(t, func(c *Config) { stuckDialer(c, &dials); c.DialTimeout = time.Hour })
	g.set(secretWith("a", "endpoint", "https://127.0.0.1:1", "token", "x"))
	for range maxDials {
		g.startUpgrade("a", "/")
	}
	eventually(t, "the limit is reached", func() bool { return dials.Load() == maxDials })
	slot := g.handler.table.slot("a")
	if err := slot.gate.enter(t.Context(), time.Millisecond); err != errTooManyDials {
		t.Errorf("got %v, want %v", err, errTooManyDials)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := slot.gate.enter(ctx, time.Hour); err != context.Canceled {
		t.Errorf("a canceled request: got %v, want %v", err, context.Canceled)
	}
	status := tooManyDials(slot.current.cluster).ErrStatus
	if status.Code != http.StatusTooManyRequests || !strings.Contains(status.Message, `cluster "a" already has 64 connections being established`) {
		t.Errorf("%+v", status)
	}
}
