// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/dialer"
	"github.com/oam-dev/cluster-gateway/pkg/internal/untrusted"
)

// A process that is paused, or a host that has vanished, keeps its connections open. HTTP/2 finds
// out with a ping. But the answer to a ping waits behind the data of other requests, and over a
// slow link that can take longer than one would like to wait for an agent that is paused. So the
// ping only makes sure that something arrives: a connection is closed if nothing at all does.

// liveness is how connections are found whose other end does not answer any more.
type liveness struct {
	// pingAfter is how long no HTTP/2 frame arrives before a ping is sent, and pingTimeout how long
	// its answer may take.
	pingAfter, pingTimeout time.Duration
	// tick is how often it is looked whether something has arrived. After silentTicks without, the
	// connection is closed. 0 means never; then pings alone decide.
	tick time.Duration
}

// silentTicks is after how many ticks without a byte a connection is closed. Ticks are counted, and
// not the time, so that a gateway that was paused itself does not close all of its connections.
const silentTicks = 4

var (
	// livenessOfTunnel closes a connection 10 to 12.5 s after the last byte, of which the API server
	// has at least 5 s to answer the ping. Another agent can take over. The ping alone counts if
	// bytes of others arrive by the same stream.
	livenessOfTunnel = liveness{pingAfter: 5 * time.Second, pingTimeout: 40 * time.Second, tick: 2500 * time.Millisecond}
	// livenessOfDirect is client-go's (HTTP2_READ_IDLE_TIMEOUT_SECONDS and
	// HTTP2_PING_TIMEOUT_SECONDS, k8s.io/apimachinery/pkg/util/net).
	livenessOfDirect = liveness{pingAfter: 30 * time.Second, pingTimeout: 15 * time.Second}
)

// livenessOf returns the liveness of connections to a cluster. Those through a tunnel are checked
// as override says, if it is set.
func livenessOf(c *cluster.Cluster, override liveness) liveness {
	switch {
	case c.Route != cluster.RouteTunnel:
		return livenessOfDirect
	case override.tick > 0:
		return override
	default:
		return livenessOfTunnel
	}
}

// silentError is the error of the requests on a connection on which nothing has arrived for some
// time.
type silentError struct {
	agent string
	after time.Duration
}

func (e *silentError) Error() string {
	way := "its tunnel"
	if e.agent != "" {
		way = "agent " + untrusted.Limit(e.agent, 128)
	}
	return fmt.Sprintf("nothing has come back through %s for %s", way, e.after)
}

// Is makes it a dialer.ErrSilent.
func (e *silentError) Is(target error) bool { return target == dialer.ErrSilent }

// silenceWatch closes a connection on which nothing arrives.
type silenceWatch struct {
	conn    *countedConn
	outcome *dialer.Attempt
	tick    time.Duration
	timer   *time.Timer
	// read is set when something has arrived since the last tick.
	read atomic.Bool
	// quiet is the number of ticks without. heard is what the carrier reported at the last one.
	quiet int
	heard uint64
	// silent is set before the connection is closed.
	silent atomic.Pointer[silentError]
}

// watch begins to watch an established connection. Call it before anything else uses the
// connection.
func (c *countedConn) watch(outcome *dialer.Attempt, tick time.Duration) {
	w := &silenceWatch{conn: c, outcome: outcome, tick: tick, heard: outcome.Heard()}
	c.watched = w
	w.timer = time.AfterFunc(time.Hour, w.look)
	w.timer.Reset(tick) // only now: look uses w.timer
}

// look is called at each tick.
func (w *silenceWatch) look() {
	heard := w.outcome.Heard()
	if w.read.Swap(false) || heard != w.heard {
		w.quiet, w.heard = 0, heard
	} else {
		w.quiet++
	}
	if w.conn.closed.Load() {
		return
	}
	if w.quiet < silentTicks {
		w.timer.Reset(w.tick)
		return
	}
	err := &silentError{agent: w.outcome.Agent(), after: silentTicks * w.tick}
	w.silent.Store(err)
	w.outcome.Report(err)
	_ = w.conn.Close() // the silence is the error to report
}

// Read implements net.Conn.
func (c *countedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if w := c.watched; w != nil {
		if n > 0 && !w.read.Load() {
			w.read.Store(true)
		}
		err = w.explain(err)
	}
	return n, err
}

// Write implements net.Conn.
func (c *countedConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if c.watched != nil {
		err = c.watched.explain(err)
	}
	return n, err
}

// explain returns the reason for which the connection was closed, instead of err.
func (w *silenceWatch) explain(err error) error {
	if err != nil {
		if silent := w.silent.Load(); silent != nil {
			return silent
		}
	}
	return err
}
