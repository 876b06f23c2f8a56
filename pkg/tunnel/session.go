// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"
	"sigs.k8s.io/apiserver-network-proxy/konnectivity-client/proto/client"

	"github.com/oam-dev/cluster-gateway/pkg/dialer"
)

var (
	errAgentGone = errors.New("the agent's connection to the gateway has ended")
	errStalled   = errors.New("the agent has not accepted a packet for too long")
	errNoAnswer  = errors.New("the agent did not answer in time")
	errUnused    = errors.New("the stream is not needed any more")
	errProtocol  = errors.New("the agent broke the Konnectivity protocol")
)

// A faulty agent must not make its session grow without bound.
const (
	// maxClosing bounds the connections whose end the agent has not confirmed. The stock agent
	// always confirms it at once.
	maxClosing = 4096
	// maxControl bounds the close requests that wait for an agent which sends data for connections
	// that do not exist. Dropping one does no harm: the next packet of that connection causes
	// another.
	maxControl = 1024
)

// session is one stream of one agent. The IDs of dials and connections are valid within their
// session only. Its methods are in session_dial.go, session_send.go and session_receive.go.
type session struct {
	cfg     *Config
	peer    *peerIdentity
	agentID string // as the agent claims it; for log lines and to tell agents of one cluster apart
	since   time.Time
	stream  packetStream
	logger  klog.Logger

	// agent is nil for an enrollment. serverID is what the agent takes for the ID of a server.
	agent    *agentState
	serverID string
	// activated is closed when a parked stream is taken into use. purpose and crowded are set
	// before that, and do not change then. crowded means that the stream is always shared.
	activated chan struct{}
	purpose   dialer.Purpose
	crowded   bool
	// onIdle is called when the last connection of the session has ended.
	onIdle func()
	// onDrain is called when the agent reports that it drains. The agent reports it on each of its
	// streams, but on a quiet stream only with the next dial.
	onDrain func()

	// unanswered is set by a dial that has waited attemptTimeout in vain, and cleared by any
	// packet. Such a session is chosen last.
	unanswered atomic.Bool
	// heard counts the packets that have arrived.
	heard atomic.Uint64
	// sendingSince is when the Send under way began, in Unix nanoseconds; 0 if there is none.
	sendingSince atomic.Int64

	// laggedAt is when a client was last seen to lag, in Unix nanoseconds; 0 if never.
	laggedAt atomic.Int64

	mu       sync.Mutex
	reserved int // dials that have chosen this session
	// idleSince is when the session was last used.
	idleSince time.Time
	draining  bool
	leaving   bool // takeLeaving has reported the connections of a draining agent
	dials     map[int64]*pendingDial
	conns     map[int64]*tunnelConn
	control   []*client.Packet // to be sent before any data
	ready     []*tunnelConn    // connections with something to send, in turn
	closing   int              // how many of conns the agent was asked to close and has not confirmed
	ended     error

	// joined has room for one token. A token means that a dial has chosen this session.
	joined chan struct{}
	// wake has room for one token. A token means that there is something to send.
	wake chan struct{}
	// done is closed when the session ends. ended is the reason.
	done chan struct{}
}

func newSession(cfg *Config, peer *peerIdentity, agentID string, purpose dialer.Purpose, stream packetStream, logger klog.Logger) *session {
	s := &session{
		cfg: cfg, peer: peer, agentID: agentID, purpose: purpose, since: time.Now(), stream: stream, logger: logger,
		dials: map[int64]*pendingDial{}, conns: map[int64]*tunnelConn{},
		idleSince: time.Now(), joined: make(chan struct{}, 1), wake: make(chan struct{}, 1), done: make(chan struct{}),
	}
	s.onDrain, s.onIdle = s.drain, func() {}
	return s
}

// end fails all open connections and pending dials with the reason why. Only the first call has an
// effect.
func (s *session) end(why error) {
	s.mu.Lock()
	if s.ended != nil {
		s.mu.Unlock()
		return
	}
	s.ended = why
	dials, conns := s.dials, s.conns
	s.dials, s.conns, s.control, s.ready = nil, nil, nil, nil
	close(s.done)
	s.mu.Unlock()

	for _, d := range dials {
		d.answer <- dialAnswer{err: s.agentError(d.address, why)}
	}
	for _, c := range conns {
		c.CloseRemote(why)
	}
}

// agentError returns a dial's error at StageAgent.
func (s *session) agentError(address string, err error) error {
	return &dialer.Error{Cluster: s.peer.cluster, Stage: dialer.StageAgent, Address: address, Err: err}
}

// takeLeaving reports whether the agent drains and has connections for which this has not been
// reported yet.
func (s *session) takeLeaving() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.draining || s.leaving || len(s.conns)-s.closing == 0 {
		return false
	}
	s.leaving = true
	return true
}

// drain records that the agent is about to end.
func (s *session) drain() {
	s.mu.Lock()
	already := s.draining
	s.draining = true
	s.mu.Unlock()
	if !already {
		s.logger.Info("The agent is draining and gets no new connections while there is another agent")
	}
}

// isDraining reports whether the agent is about to end.
func (s *session) isDraining() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.draining
}

// open returns the number of connections and dials.
func (s *session) open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.openLocked()
}

func (s *session) openLocked() int {
	return len(s.conns) - s.closing + max(len(s.dials), s.reserved)
}
