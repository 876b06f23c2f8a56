// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/dialer"
)

// wayConn is a connection by a way that can cease to move, or move slowly.
type wayConn struct {
	net.Conn
	way    *way
	closed chan struct{}
	once   sync.Once
}

// way is how connections lead to an API server. After pause, they take what is written, and nothing
// arrives on them, as with an agent that is paused.
type way struct {
	paused chan struct{}
	// pace is the time for each KiB that arrives, in nanoseconds.
	pace atomic.Int64
	// heard counts what arrives, as a tunnel counts that of all connections of a stream.
	heard atomic.Uint64
}

func newWay() *way { return &way{paused: make(chan struct{})} }

func (w *way) isPaused() bool {
	select {
	case <-w.paused:
		return true
	default:
		return false
	}
}

func (w *way) wrap(conn net.Conn) net.Conn {
	c := &wayConn{Conn: conn, way: w, closed: make(chan struct{})}
	go func() { // a Read that waits already gets nothing either
		select {
		case <-w.paused:
			_ = conn.SetReadDeadline(time.Unix(1, 0))
		case <-c.closed:
		}
	}()
	return c
}

func (c *wayConn) Read(p []byte) (int, error) {
	if pace := time.Duration(c.way.pace.Load()); pace > 0 {
		time.Sleep(pace)
		p = p[:min(len(p), 1<<10)]
	}
	n, err := c.Conn.Read(p)
	if c.way.isPaused() {
		<-c.closed
		return 0, net.ErrClosed
	}
	return n, err
}

func (c *wayConn) Write(p []byte) (int, error) {
	if c.way.isPaused() {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

func (c *wayConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// agents are two ways to an API server. The second one is used when a failure of the first one was
// reported.
type agents struct {
	first, second *way

	mu      sync.Mutex
	reports []error // of the first
}

func (a *agents) dial(ctx context.Context, network, address string) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if n := len(a.reports); n > 0 && a.reports[n-1] != nil {
		return a.second.wrap(conn), nil
	}
	dialer.SetAgent(ctx, "one")
	dialer.SetHeard(ctx, a.first.heard.Load)
	dialer.SetCarrier(ctx, func(err error) {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.reports = append(a.reports, err)
	}, true)
	return a.first.wrap(conn), nil
}

// failures returns the failures of the first agent.
func (a *agents) failures() (all []error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, err := range a.reports {
		if err != nil {
			all = append(all, err)
		}
	}
	return all
}

// startAgents returns a gateway that reaches a cluster through two agents. A connection on which
// nothing arrives for silence is closed.
func startAgents(t *testing.T, s *apiServer) (g *gateway, a *agents, silence time.Duration) {
	t.Helper()
	a = &agents{first: newWay(), second: newWay()}
	alive := liveness{pingAfter: 250 * time.Millisecond, pingTimeout: time.Minute, tick: 250 * time.Millisecond}
	g = newGateway(t, func(c *Config) {
		c.liveness = alive
		c.Dialers = func(c *cluster.Cluster, _ dialer.Purpose) (dialer.Dialer, error) {
			return dialer.New(c.Name, a.dial), nil
		}
	})
	g.set(throughTunnel(s.secret("east")))
	return g, a, silentTicks * alive.tick
}

// When an agent ceases to move, the connection through it is closed. Requests that only read are
// sent again, by another agent; others are answered with the reason, and never sent twice.
func TestAgentCeasesToMove(t *testing.T) {
	t.Parallel()
	var writes, reads atomic.Int64
	received := make(chan struct{}, 10)
	var a *agents
	s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, "/waits") {
			ok(w, r)
			return
		}
		count := &reads
		if r.Method == http.MethodPost {
			count = &writes
		}
		if count.Add(1) == 1 { // the answer comes when the agent does not move any more
			received <- struct{}{}
			<-a.first.paused
		}
		ok(w, r)
	})
	g, agents, silence := startAgents(t, s)
	a = agents
	resp, body := g.get("east", "/api/v1/namespaces/n")
	wantCode(t, resp, body, http.StatusOK)

	began := time.Now()
	var group sync.WaitGroup
	group.Go(func() {
		if resp, body := g.get("east", "/api/v1/namespaces/waits"); resp.StatusCode != http.StatusOK {
			t.Errorf("a GET was answered with %d: %s", resp.StatusCode, body)
		}
	})
	group.Go(func() {
		resp, body := g.do(http.MethodPost, "east", "/api/v1/namespaces/waits", strings.NewReader("{}"))
		if resp.StatusCode != http.StatusGatewayTimeout || !strings.Contains(body, "nothing has come back through agent one for 1s") ||
			!strings.Contains(body, "may have been carried out") {
			t.Errorf("a POST was answered with %d: %s", resp.StatusCode, body)
		}
	})
	<-received
	<-received
	close(a.first.paused)
	group.Wait()
	if took := time.Since(began); took < silence || took > maxWait/2 {
		t.Errorf("it took %s to close the connection, want %s and little more", took, silence)
	}
	if writes.Load() != 1 || reads.Load() != 2 {
		t.Errorf("the POST was sent %d times and the GET %d times, want 1 and 2", writes.Load(), reads.Load())
	}
	if got := a.failures(); len(got) != 1 {
		t.Errorf("the failures of the agent are %v, want one", got)
	}
	resp, body = g.get("east", "/api/v1/namespaces/n")
	wantCode(t, resp, body, http.StatusOK)
}

// A cluster that is slow to answer, and a link that is slow, are no reason to close a connection.
// Nor is a stream of the tunnel on which others are served first.
func TestSlowConnectionLives(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		// pace is that of the link. It delays the answer to a ping, behind the body of the answer.
		pace time.Duration
		size int64
		// think is how long the handler takes.
		think int
		// busy is set if other connections have the stream, while nothing arrives on this one.
		busy bool
	}{
		"slow handler": {think: 3, size: 1},
		"slow link":    {pace: 25 * time.Millisecond, size: 128 << 10},
		"busy stream":  {pace: 1500 * time.Millisecond, size: 4 << 10, busy: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var silence time.Duration
			s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
				if strings.HasSuffix(r.URL.Path, "/slow") {
					time.Sleep(time.Duration(c.think) * silence)
					_, _ = w.Write(make([]byte, c.size))
				}
			})
			g, a, limit := startAgents(t, s)
			silence = limit
			resp, body := g.get("east", "/version")
			wantCode(t, resp, body, http.StatusOK)
			a.first.pace.Store(int64(c.pace))
			done := make(chan struct{})
			defer close(done)
			if c.busy {
				go func() {
					for {
						select {
						case <-done:
							return
						case <-time.After(limit / silentTicks / 2):
							a.first.heard.Add(1)
						}
					}
				}()
			}
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, g.url("east", "/api/v1/namespaces/slow"), nil)
			if err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			resp, err = g.client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			wantCode(t, resp, "", http.StatusOK)
			_, err = io.CopyN(io.Discard, resp.Body, c.size)
			if c.pace > 0 && time.Since(began) < limit {
				t.Errorf("the answer took only %s", time.Since(began))
			}
			if err != nil || len(a.failures()) > 0 {
				t.Errorf("%v; the failures of the agent are %v", err, a.failures())
			}
		})
	}
}
