// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"context"
	"fmt"
	"testing"
	"time"

	"sigs.k8s.io/apiserver-network-proxy/konnectivity-client/proto/client"

	"github.com/oam-dev/cluster-gateway/pkg/dialer"
	"github.com/oam-dev/cluster-gateway/pkg/dialer/dialertest"
)

// An agent that has ceased to answer counts as one until anything arrives from it, however it was
// noticed.
func TestAnswers(t *testing.T) {
	t.Parallel()
	g := startGateway(t, func(c *Config) { c.attemptTimeout = 100 * time.Millisecond })
	if g.Answers("east") {
		t.Error("a cluster without agents answers")
	}
	a := g.connect(t, "east", "a")
	d := g.dialer(t, "east", dialer.ForRequests)
	if !g.Answers("east") {
		t.Fatal("an agent that has just connected does not answer")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := d.DialContext(ctx, "tcp", apiServer); err == nil {
		t.Fatal("a dial without an answer has succeeded")
	}
	if g.Answers("east") {
		t.Error("an agent that has not answered a dial answers")
	}
	a.send(dialResponse(a.expect(client.PacketType_DIAL_REQ).GetDialRequest().GetRandom(), 1, ""))
	dialertest.Eventually(t, "the agent to answer", func() bool { return g.Answers("east") })

	dialCtx, attempt := dialer.WithAttempt(t.Context())
	got := goDial(dialCtx, d)
	a.expect(client.PacketType_CLOSE_REQ) // the first dial was answered too late
	a.accept(2)
	if r := dialertest.Within(t, got, "the dial"); r.err != nil {
		t.Fatal(r.err)
	}
	attempt.Report(nil)
	if !g.Answers("east") {
		t.Error("an agent whose connection works does not answer")
	}
	attempt.Report(fmt.Errorf("for some time: %w", dialer.ErrSilent))
	if g.Answers("east") {
		t.Error("an agent whose connection has fallen silent answers")
	}
	a.send(data(2, []byte("x")))
	dialertest.Eventually(t, "the agent to answer", func() bool { return g.Answers("east") })
	attempt.Report(dialer.ErrSilent)
	if !g.Answers("east") {
		t.Error("a second report of the same connection counts")
	}
}

// A silence ends by itself, so that the agent is tried again.
func TestSilenceEnds(t *testing.T) {
	t.Parallel()
	var s silence
	now := time.Now()
	s.begin(now)
	if !s.lasts(now.Add(silenceFor-time.Second)) || s.lasts(now.Add(silenceFor)) {
		t.Errorf("the silence does not last for %s", silenceFor)
	}
}
