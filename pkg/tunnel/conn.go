// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/oam-dev/cluster-gateway/pkg/dialer"
)

// silentAfter is how long a connection for requests may have received nothing before its end counts
// as a failure. HTTP/2 answers pings, so it is never silent for as long.
const silentAfter = 10 * time.Second

// patientAfter is how long a caller must have waited for its silence to count in full.
const patientAfter = time.Second

var errSilent = errors.New("it accepted connections, and nothing came back")

// tunnelConn is a connection of a session.
type tunnelConn struct {
	*dialer.BufferedConn
	session *session
	id      int64
	// queued means that the connection is in session.ready, and closing that it is counted in
	// session.closing. Both are guarded by session.mu.
	queued, closing bool

	// sent and received are when bytes last went out and came in, in Unix nanoseconds; 0 if never.
	sent, received atomic.Int64
	judged, ended  sync.Once
}

// Close implements net.Conn.
func (c *tunnelConn) Close() error {
	c.ended.Do(c.judgeEnd)
	return c.BufferedConn.Close()
}

// judge records what became of the connection, for its agent. After the first call, only a failure
// counts: a connection that worked works no more.
func (c *tunnelConn) judge(err error) {
	if err != nil {
		c.judged.Do(func() {})
		if errors.Is(err, dialer.ErrSilent) {
			c.session.agent.fellSilent()
		}
		c.session.agent.failed(err, 1)
		return
	}
	c.judged.Do(c.session.agent.succeeded)
}

// judgeEnd is judge for a connection that ends, as far as this side can see.
func (c *tunnelConn) judgeEnd() {
	sent, received := c.sent.Load(), c.received.Load()
	switch {
	case sent == 0 && received == 0:
	case received == 0:
		weight := 1.
		if time.Since(time.Unix(0, sent)) < patientAfter {
			weight = suspectFrom // perhaps the caller has just changed their mind
		}
		c.judged.Do(func() { c.session.agent.failed(errSilent, weight) })
	case c.session.purpose == dialer.ForRequests && sent-received > int64(silentAfter):
		c.session.agent.failed(errSilent, 1) // even if it worked before
	default:
		c.judge(nil)
	}
}

// failed counts a failure. A nil agent, that of an enrollment, has no record.
func (a *agentState) failed(err error, weight float64) {
	if a != nil {
		a.record.failed(err, weight, time.Now())
	}
}

// succeeded counts a success. A nil agent, that of an enrollment, has no record.
func (a *agentState) succeeded() {
	if a != nil {
		a.record.succeeded()
	}
}
