// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/dialer"
	"github.com/oam-dev/cluster-gateway/pkg/internal/memory"
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
	if _, err := slot.gate.enter(t.Context(), time.Millisecond); err != errTooManyDials {
		t.Errorf("got %v, want %v", err, errTooManyDials)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := slot.gate.enter(ctx, time.Hour); err != context.Canceled {
		t.Errorf("a canceled request: got %v, want %v", err, context.Canceled)
	}
	status := tooManyDials(slot.current.cluster).ErrStatus
	if status.Code != http.StatusTooManyRequests || !strings.Contains(status.Message, `too many connections to cluster "a" are being established`) {
		t.Errorf("%+v", status)
	}
}

// TestDialsOfAllClustersAreLimited: clusters that do not answer can use up the places for all, and
// each cluster still has one.
func TestDialsOfAllClustersAreLimited(t *testing.T) {
	t.Parallel()
	const limit = 3
	all := newDialLimit(limit)
	stuck, good := newDialGate(all), newDialGate(all)
	var leaves []func()
	for range limit + 1 {
		leave, err := stuck.enter(t.Context(), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		leaves = append(leaves, leave)
	}
	if _, err := stuck.enter(t.Context(), time.Millisecond); err != errTooManyDials {
		t.Errorf("one more dial to the stuck cluster: %v", err)
	}
	for range 3 {
		leave, err := good.enter(t.Context(), maxWait)
		if err != nil {
			t.Fatalf("the only dial to another cluster: %v", err)
		}
		if _, err := good.enter(t.Context(), time.Millisecond); err != errTooManyDials {
			t.Errorf("a second dial to another cluster: %v", err)
		}
		leave()
	}
	for _, leave := range leaves {
		leave()
	}
	if n := len(all) + len(stuck.own) + len(good.own) + len(stuck.first) + len(good.first); n != 0 {
		t.Errorf("%d places are taken after all dials", n)
	}
}

// TestWaitingRequestsDelayNobody checks that requests which wait for a cluster that does not answer
// delay no request to another cluster, even if they use up everything that one cluster can have.
func TestWaitingRequestsDelayNobody(t *testing.T) {
	s := newAPIServer(t, ok)
	var dials atomic.Int64
	budget := memory.NewBudget(64 << 20)
	g := newGateway(t, func(c *Config) {
		direct := c.Dialers
		stuckDialer(c, &dials)
		stuck := c.Dialers
		c.Dialers = func(c *cluster.Cluster, purpose dialer.Purpose) (dialer.Dialer, error) {
			if c.Name == "gone" {
				return stuck(c, purpose)
			}
			return direct(c, purpose)
		}
		c.DialTimeout, c.RequestTimeout, c.Memory = time.Hour, time.Hour, budget
	})
	g.set(s.secret("gone"))
	g.set(s.secret("good"))
	ctx, cancel := context.WithCancel(t.Context())
	refused := make(chan int, 1000)
	var group sync.WaitGroup
	for range 100 {
		group.Go(func() {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, g.url("gone", "/api/v1/namespaces/n"), nil)
			if err != nil {
				t.Error(err)
				return
			}
			if resp, err := g.client.Do(req); err == nil {
				_ = resp.Body.Close()
				refused <- resp.StatusCode
			}
		})
	}
	// Those that exceed what one cluster can have are refused, the others wait.
	if code := <-refused; code != http.StatusTooManyRequests {
		t.Errorf("a request that does not fit got %d, want 429", code)
	}
	for range 50 {
		resp, body := g.get("good", "/api/v1/namespaces/n")
		wantCode(t, resp, body, http.StatusOK)
	}
	if n := dials.Load(); n != 1 {
		t.Errorf("%d dials to the cluster that does not answer, want 1", n)
	}
	cancel()
	group.Wait()
	eventually(t, "all memory is given back", func() bool { return usedMemory(t, budget) == 0 })
}
