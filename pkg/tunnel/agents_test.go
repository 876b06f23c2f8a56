// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr/funcr"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/oam-dev/cluster-gateway/pkg/dialer/dialertest"
)

// A cluster can have MaxAgents agents. An agent that is refused learns why, and the refusal is
// logged and counted. Other clusters are not affected.
func TestMaxAgents(t *testing.T) {
	t.Parallel()
	const limit = 3
	logged := make(chan string, 100)
	var refused atomic.Int64
	g := startGateway(t, func(c *Config) {
		c.MaxAgents = limit
		c.Logger = funcr.New(func(_, args string) { logged <- args }, funcr.Options{})
	}, func(s *Server) {
		s.OnRefusal(func(cluster string) {
			if cluster == "east" {
				refused.Add(1)
			}
		})
	})
	for i := range limit {
		g.connect(t, "east", fmt.Sprint(i))
	}
	const reason = `cluster "east" already has 3 agents at this replica of the gateway, which is the limit: run fewer agents, or raise --tunnel-max-agents of the gateway`
	if err := g.RecentRefusal("east"); err != nil {
		t.Errorf("nobody has been refused, and yet: %v", err)
	}
	_, err := g.tryConnect(t, g.tls(t, "east"), "one too many")
	if status.Code(err) != codes.ResourceExhausted || status.Convert(err).Message() != reason {
		t.Errorf("%v, want ResourceExhausted: %s", err, reason)
	}
	for line := range logged {
		if strings.Contains(line, "Refused an agent") {
			if !strings.Contains(line, strconv.Quote(reason)) {
				t.Errorf("the log line %s does not have the reason", line)
			}
			break
		}
		if len(logged) == 0 {
			t.Error("the refusal was not logged")
			break
		}
	}
	if n := refused.Load(); n != 1 {
		t.Errorf("%d refusals are counted, want 1", n)
	}
	if err := g.RecentRefusal("east"); err == nil || err.Error() != reason {
		t.Errorf("the recent refusal is %v, want %s", err, reason)
	}
	if err := g.RecentRefusal("west"); err != nil {
		t.Errorf("another cluster's agents have been refused: %v", err)
	}
	g.connect(t, "west", "another cluster's")
	if n, _ := g.Agents("east"); n != limit {
		t.Errorf("%d agents, want %d", n, limit)
	}
}

// A refusal is reported while the agent keeps trying, and not forever.
func TestRefusalsAreForgotten(t *testing.T) {
	var r refusals
	now := time.Now()
	r.add("east", "full", now)
	r.removeOld(now.Add(refusalsReportedFor))
	if err := r.recent("east", now.Add(refusalsReportedFor)); err == nil || err.Error() != "full" {
		t.Error(err)
	}
	if err := r.recent("east", now.Add(refusalsReportedFor+time.Second)); err != nil {
		t.Error(err)
	}
	r.removeOld(now.Add(refusalsReportedFor + time.Second))
	if len(r.last) != 0 {
		t.Errorf("%v", r.last)
	}
}

// A subscriber of OnAgentsChange may call the Server. It is called for changes only, and the last
// call has the last number.
func TestAgentsChanged(t *testing.T) {
	t.Parallel()
	type change struct {
		cluster string
		n       int
	}
	changes := make(chan change, 100)
	g := startGateway(t, nil, func(s *Server) {
		s.OnAgentsChange(func(cluster string, n int) {
			s.Agents(cluster)
			changes <- change{cluster, n}
		})
	})
	expect := func(n int) {
		t.Helper()
		if got, want := dialertest.Within(t, changes, "OnAgentsChange"), (change{"east", n}); got != want {
			t.Errorf("the subscriber got %v, want %v", got, want)
		}
	}
	kill := func(a *fakeAgent) {
		left := g.sessionCount()
		a.kill()
		dialertest.Eventually(t, "the table", func() bool { return g.sessionCount() == left-1 })
	}
	// A call comes after the table has changed, and reports all changes until then. So each change
	// waits for the call of the previous one.
	a1 := g.connect(t, "east", "a")
	expect(1)
	a2 := g.park(t, "east", "a")
	b := g.connect(t, "east", "b")
	expect(2)
	kill(a1) // the other stream takes over
	kill(b)
	expect(1)
	kill(a2)
	expect(0)
	g.stop()
	if len(changes) != 0 {
		t.Errorf("the subscriber also got %v", <-changes)
	}
}

func (g *gateway) sessionCount() int {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return len(g.sessionsLocked())
}
