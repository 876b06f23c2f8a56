// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package peers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes/fake"

	"github.com/oam-dev/cluster-gateway/pkg/dialer"
)

// gate lets everybody pass while it is open.
type gate struct {
	mu     sync.Mutex
	opened chan struct{}
}

func (g *gate) get() chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.opened == nil {
		g.opened = make(chan struct{})
	}
	return g.opened
}

func (g *gate) open() {
	select {
	case <-g.get():
	default:
		close(g.opened)
	}
}

func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.opened = make(chan struct{})
}

// pausableListener has connections of which nothing is read while the gate is shut. The kernel
// accepts connections and data then, as it does for a process that was stopped.
type pausableListener struct {
	net.Listener
	running *gate
}

func (l pausableListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return pausableConn{conn, l.running}, nil
}

type pausableConn struct {
	net.Conn
	running *gate
}

func (c pausableConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	<-c.running.get()
	return n, err
}

// asked sends a request, and returns the addresses to which it was sent or should have been.
func (r *replica) asked(t *testing.T, cluster string, upgrade bool) (addresses []string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), maxWait)
	defer cancel()
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GetConn: func(address string) { addresses = append(addresses, address) }})
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "/", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := r.RoundTripper(cluster, false, upgrade).RoundTrip(req)
	if err != nil {
		return addresses, err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return addresses, errors.Join(err, resp.Body.Close())
}

func quickly(cfg *Config) {
	cfg.pingAfter, cfg.pingTimeout, cfg.connectTimeout = 50*time.Millisecond, time.Second, time.Second
}

// TestPausedReplica shows that a replica that does not run any more, but whose connections exist,
// is noticed by the first request that it does not answer, and gets none until it runs again.
func TestPausedReplica(t *testing.T) {
	t.Parallel()
	for name, upgrade := range map[string]bool{"requests": false, "upgrades": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			credentials := newCredentials(t, fake.NewClientset(), 0)
			a := newReplica(t, "a", "", credentials, quickly)
			b, c := newReplica(t, "b", "edge", credentials, nil), newReplica(t, "c", "edge", credentials, nil)
			a.sees("b", b.address, "edge")
			if _, err := a.asked(t, "edge", upgrade); err != nil { // the connection exists
				t.Fatal(err)
			}
			b.running.shut()
			toPaused, failures := 0, 0
			ask := func() {
				addresses, err := a.asked(t, "edge", upgrade)
				if err != nil {
					failures++
				}
				for _, address := range addresses {
					if address == b.address {
						toPaused++
					}
				}
			}
			ask() // b is the only one that has an agent
			if failures != 1 {
				t.Fatalf("a replica that does not run has answered")
			}
			a.sees("c", c.address, "edge")
			for range 20 {
				ask()
			}
			if toPaused != 1 || failures != 1 {
				t.Errorf("%d requests were sent to the paused replica, and %d failed, want 1 and 1", toPaused, failures)
			}

			// It runs again.
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() { defer close(done); a.recheck(ctx) }()
			b.running.open()
			eventually(t, "the paused replica to be used again", func() bool { ask(); return toPaused > 1 })
			cancel()
			<-done
		})
	}
}

// TestBrokenAnswer shows that a replica that stops in the middle of an answer is avoided, too, and
// that an answer that alone is broken does not count against its replica.
func TestBrokenAnswer(t *testing.T) {
	t.Parallel()
	credentials := newCredentials(t, fake.NewClientset(), 0)
	a := newReplica(t, "a", "", credentials, quickly)
	started := make(chan struct{}, 1)
	abort := make(chan struct{})
	b := newReplica(t, "b", "edge", credentials, func(cfg *Config) {
		cfg.Forwarded = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_ = http.NewResponseController(w).Flush()
			started <- struct{}{}
			select {
			case <-r.Context().Done():
			case <-abort:
				panic(http.ErrAbortHandler)
			}
		})
	})
	a.sees("b", b.address, "edge")
	broken := func() bool {
		found := a.candidates("edge")
		return len(found) == 1 && found[0].failed
	}
	go func() { <-started; abort <- struct{}{} }()
	if _, err := a.asked(t, "edge", false); err == nil || broken() {
		t.Errorf("after an answer that the replica has cut off: %v, avoided: %v", err, broken())
	}
	go func() { <-started; b.running.shut() }()
	if _, err := a.asked(t, "edge", false); err == nil || !broken() {
		t.Errorf("after an answer that was not continued: %v, avoided: %v", err, broken())
	}
}

// TestLeastLoaded shows that requests, upgrades and dials choose the same replica: the one that has
// the fewest of them.
func TestLeastLoaded(t *testing.T) {
	t.Parallel()
	credentials := newCredentials(t, fake.NewClientset(), 0)
	a := newReplica(t, "a", "", credentials, nil)
	serve := func(cfg *Config) {
		cfg.Forwarded = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Replica", cfg.ID)
			if r.Header.Get("Upgrade") == "" {
				_ = http.NewResponseController(w).Flush()
				<-r.Context().Done()
				return
			}
			w.Header().Set("Connection", "Upgrade")
			w.Header().Set("Upgrade", "test")
			w.WriteHeader(http.StatusSwitchingProtocols)
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, conn)
			_ = conn.Close()
		})
		cfg.Dial = func(context.Context, string) (net.Conn, error) {
			far, near := net.Pipe()
			go func() { _, _ = io.Copy(io.Discard, far) }()
			return near, nil
		}
	}
	b, c := newReplica(t, "b", "edge", credentials, serve), newReplica(t, "c", "edge", credentials, serve)
	a.sees("b", b.address, "edge")
	a.sees("c", c.address, "edge")
	other := map[string]string{"b": "c", "c": "b"}
	send := func(longRunning, upgrade bool) (string, io.Closer) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
		if err != nil {
			t.Fatal(err)
		}
		if upgrade {
			req.Header.Set("Connection", "Upgrade")
			req.Header.Set("Upgrade", "test")
		}
		resp, err := a.RoundTripper("edge", longRunning, upgrade).RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		return resp.Header.Get("Replica"), resp.Body
	}
	loads := func() (all string) {
		found := map[string]int64{}
		for _, other := range a.candidates("edge") {
			found[other.address] = other.load.Load()
		}
		return fmt.Sprint(found[b.address], found[c.address])
	}
	for range 10 { // whichever comes first, the second one goes to the other replica
		first, request := send(false, false)
		second, upgrade := send(false, true)
		if second != other[first] {
			t.Errorf("an upgrade went to the replica that had a request")
		}
		_ = request.Close()
		third, stream := send(true, false)
		if third != first {
			t.Errorf("a stream went to the replica that had an upgrade")
		}
		_ = upgrade.Close()
		conn, err := a.Dialer("edge").DialContext(t.Context(), "tcp", "api:6443")
		if err != nil {
			t.Fatal(err)
		}
		fourth, last := send(false, false) // one has the stream, one has the dial
		if got := loads(); got != "2 1" && got != "1 2" {
			t.Errorf("after a stream at %s, a dial, and a request at %s, the loads are %s", third, fourth, got)
		}
		for _, open := range []io.Closer{stream, conn, last} {
			_ = open.Close()
		}
		if got := loads(); got != "0 0" {
			t.Errorf("when all have ended, the loads are %s", got)
		}
	}
	var failed *dialer.Error
	a.setFailed(b.address, true)
	_, err := b.Dialer("edge").DialContext(t.Context(), "tcp", "api:6443")
	if !errors.As(err, &failed) || failed.Stage != dialer.StagePeer {
		t.Errorf("a replica that knows no other one: %v", err)
	}
	for range 10 {
		if id, request := send(false, false); id != "c" {
			t.Error("a replica to which a connection has failed was chosen")
		} else {
			defer request.Close()
		}
	}
}

// TestSilentReplica shows that an upgrade ends early if its replica stops while it has the request,
// and that no other replica gets it: the first one may have carried it out.
func TestSilentReplica(t *testing.T) {
	t.Parallel()
	credentials := newCredentials(t, fake.NewClientset(), 0)
	a := newReplica(t, "a", "", credentials, quickly)
	received := make(chan string, 3)
	release := make(chan struct{})
	wait := func(cfg *Config) {
		cfg.Forwarded = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { received <- cfg.ID; <-release })
	}
	b, c := newReplica(t, "b", "edge", credentials, wait), newReplica(t, "c", "edge", credentials, wait)
	defer close(release)
	a.sees("b", b.address, "edge")
	outcome := make(chan error, 1)
	go func() {
		_, err := a.asked(t, "edge", true)
		outcome <- err
	}()
	<-received
	a.sees("c", c.address, "edge")
	select {
	case err := <-outcome:
		t.Fatalf("an upgrade that takes long has ended: %v", err)
	case <-time.After(5 * a.cfg.pingAfter):
	}
	b.running.shut()
	if err := <-outcome; !errors.Is(err, errSilent) {
		t.Errorf("the upgrade has ended with %v, want %v", err, errSilent)
	}
	if len(received) > 0 {
		t.Errorf("replica %s has received the upgrade, too", <-received)
	}
	if found := a.candidates("edge"); len(found) != 2 || found[0].address != c.address {
		t.Error("the silent replica is not avoided")
	}
}
