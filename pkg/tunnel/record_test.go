// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/apiserver-network-proxy/konnectivity-client/proto/client"

	"github.com/oam-dev/cluster-gateway/pkg/dialer"
	"github.com/oam-dev/cluster-gateway/pkg/dialer/dialertest"
)

// goSwallow accepts dials and discards what it gets, until the end of the test.
func (a *fakeAgent) goSwallow() {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for next := int64(1); ; {
			p, err := a.stream.Recv()
			switch {
			case err != nil:
				return
			case p.GetType() == client.PacketType_DIAL_REQ:
				err = a.stream.Send(dialResponse(p.GetDialRequest().GetRandom(), next, ""))
				next++
			case p.GetType() == client.PacketType_CLOSE_REQ:
				err = a.stream.Send(closeResponse(p.GetCloseRequest().GetConnectID(), ""))
			}
			if err != nil {
				return
			}
		}
	}()
	a.t.Cleanup(func() { a.kill(); dialertest.Within(a.t, done, "the fake agent") })
}

// An agent that accepts dials and carries nothing always has the least load. It gets one dial, and
// then no more while the other agent works. It is named until it has gone.
func TestBlackHoleAgent(t *testing.T) {
	t.Parallel()
	for name, purpose := range map[string]dialer.Purpose{"requests": dialer.ForRequests, "upgrades": dialer.ForUpgrades} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			named := make(chan string, 10)
			g := startGateway(t, func(c *Config) {
				c.ownStreamTimeout, c.checkInterval = 10*time.Millisecond, 10*time.Millisecond
			}, func(s *Server) {
				s.OnFailingAgent(func(_, agent string, failing bool) {
					if failing {
						named <- agent
					} else {
						named <- "not " + agent
					}
				})
			})
			g.connect(t, "east", "good").goEcho(nil)
			hole := g.connect(t, "east", "hole")
			hole.goSwallow()
			d := g.dialer(t, "east", purpose)
			failed := 0
			for range 20 {
				c := mustDial(t, d)
				_ = c.SetDeadline(time.Now().Add(time.Second)) // far more than the good agent needs
				_, _ = io.WriteString(c, "hello")
				if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
					failed++
					_ = c.Close()
				}
			}
			if failed > 1 {
				t.Errorf("%d of 20 connections went through the agent that carries nothing, want one at most", failed)
			}
			// A failure of a TLS handshake counts in full. Two make it certain.
			for _, se := range g.candidates("east", purpose) {
				if se.agent.name() == "hole" {
					se.agent.failed(errors.New("the TLS handshake failed"), 1)
					se.agent.failed(errors.New("the TLS handshake failed"), 1)
				}
			}
			if got := dialertest.Within(t, named, "the report"); got != "hole" {
				t.Errorf("agent %q is named, want hole", got)
			}
			if err := g.FailingAgents("east"); err == nil || !strings.Contains(err.Error(), `agent "hole": the TLS handshake failed`) {
				t.Errorf("failing agents: %v", err)
			}
			hole.kill()
			if got := dialertest.Within(t, named, "the end of the report"); got != "not hole" {
				t.Errorf("the report is %q, want that hole no longer fails", got)
			}
		})
	}
}

// A record forgets with time, and at the first success.
func TestRecord(t *testing.T) {
	t.Parallel()
	now := time.Now()
	var r record
	if r.suspect(now) || r.failing(now) != nil {
		t.Error("an agent without a record is suspect")
	}
	fault := errors.New("x")
	r.failed(fault, 1, now)
	if !r.suspect(now) || r.failing(now) != nil {
		t.Error("after one failure, an agent must be avoided, and not be named")
	}
	r.failed(fault, 1, now)
	if !errors.Is(r.failing(now), fault) {
		t.Error("after two failures, an agent must be named")
	}
	if later := now.Add(recordHalfLife); r.failing(later) != nil || !r.suspect(later) {
		t.Error("after one half-life, two failures must count as one")
	}
	for range 100 {
		r.failed(fault, 1, now)
	}
	if later := now.Add(5 * recordHalfLife); r.suspect(later) {
		t.Error("an agent is avoided for ever")
	}
	r.succeeded()
	if r.suspect(now) || r.failing(now) != nil {
		t.Error("a success does not count")
	}
}

// If all agents fail, none of them is the cause, and they are used all the same.
func TestAllAgentsFail(t *testing.T) {
	t.Parallel()
	g := startGateway(t, nil)
	g.connect(t, "east", "a").goEcho(nil)
	g.connect(t, "east", "b").goEcho(nil)
	for _, se := range g.candidates("east", dialer.ForRequests) {
		for range 3 {
			se.agent.failed(errSilent, 1)
		}
	}
	if err := g.FailingAgents("east"); err != nil {
		t.Errorf("%v is named", err)
	}
	mustEcho(t, mustDial(t, g.dialer(t, "east", dialer.ForRequests)), "a bad agent is better than none")
}

// The caller of a dial reports what became of TLS, and learns whether there is another agent.
func TestAttempt(t *testing.T) {
	t.Parallel()
	g := startGateway(t, nil)
	g.connect(t, "east", "a").goEcho(nil)
	d := g.dialer(t, "east", dialer.ForRequests)
	dial := func() *dialer.Attempt {
		ctx, attempt := dialer.WithAttempt(t.Context())
		if _, err := d.DialContext(ctx, "tcp", apiServer); err != nil {
			t.Fatal(err)
		}
		return attempt
	}
	if dial().HasAlternative() {
		t.Error("an agent alone has an alternative")
	}
	b := make(chan string, 10)
	g.connect(t, "east", "b").goEcho(b)
	first := dial() // b has fewer connections
	if len(b) != 1 || !first.HasAlternative() {
		t.Fatalf("%d dials reached b; alternative: %t", len(b), first.HasAlternative())
	}
	first.Report(nil)
	first.Report(errors.New("nothing came back any more")) // also after a success
	for range 5 {
		dial()
	}
	if len(b) != 1 {
		t.Errorf("%d dials reached the agent that failed, want only the first", len(b))
	}
}

// Whatever arrives by the stream of a connection shows that the agent moves.
func TestAttemptHears(t *testing.T) {
	t.Parallel()
	g := startGateway(t, nil)
	g.connect(t, "east", "a").goEcho(nil)
	d := g.dialer(t, "east", dialer.ForRequests)
	ctx, attempt := dialer.WithAttempt(t.Context())
	if _, err := d.DialContext(ctx, "tcp", apiServer); err != nil {
		t.Fatal(err)
	}
	before := attempt.Heard()
	if again := attempt.Heard(); again != before {
		t.Errorf("the number has changed from %d to %d by itself", before, again)
	}
	mustEcho(t, mustDial(t, d), "another connection of the same stream")
	if attempt.Heard() == before {
		t.Error("the bytes of another connection are not heard")
	}
}
