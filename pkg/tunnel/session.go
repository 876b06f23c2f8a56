// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"
	"sigs.k8s.io/apiserver-network-proxy/konnectivity-client/proto/client"

	"github.com/oam-dev/cluster-gateway/pkg/dialer"
)

var (
	errAgentGone = errors.New("the agent's connection to the gateway has ended")
	errStalled   = errors.New("the agent has not taken a packet for too long")
	errNoAnswer  = errors.New("the agent did not answer in time")
	errProtocol  = errors.New("the agent broke the Konnectivity protocol")
)

// session is one stream of one agent. IDs of dials and connections mean something within their session only.
type session struct {
	peer          *peerIdentity
	agentID       string // as the agent claims; for people to read
	lane          dialer.Purpose
	since         time.Time
	stream        packetStream
	receiveBuffer int
	silentAfter   time.Duration
	logger        klog.Logger
	// drained is called when the agent says that it drains. It says so on each of its streams, but on a quiet one only with the next dial.
	drained func()

	// unanswered is set by a dial that has waited silentAfter for nothing, and cleared by any packet: such a session is
	// chosen last.
	unanswered atomic.Bool
	// sendingSince is when the Send under way began, in Unix nanoseconds; 0 when none is.
	sendingSince atomic.Int64

	mu       sync.Mutex
	draining bool
	left     bool // the connections that a draining agent has are known to be about to end
	dials    map[int64]*pendingDial
	conns    map[int64]*tunnelConn
	control  []*client.Packet // to be sent before any data
	ready    []*tunnelConn    // have something to send; in turn
	closing  int              // how many of conns the agent has been told to close, and has not said that it has
	ended    error

	// wake has room for one token: there is something to send.
	wake chan struct{}
	// done is closed when the session ends; ended says why.
	done chan struct{}
}

// pendingDial waits for the agent's answer.
type pendingDial struct {
	address string
	budget  *dialer.Budget // of the connection
	// answer has room for one, so that the receive loop never waits for a dial that has given up.
	answer chan dialAnswer
}

type dialAnswer struct {
	conn *tunnelConn
	err  error
}

// tunnelConn is a connection of a session.
type tunnelConn struct {
	*dialer.BufferedConn
	id int64
	// queued says whether the connection is in session.ready, closing whether it is counted in session.closing; guarded by
	// session.mu.
	queued, closing bool
}

// A faulty agent must not make its session grow without bound.
const (
	// maxClosing bounds connections whose end the agent does not confirm. The stock agent always does, at once.
	maxClosing = 4096
	// maxControl bounds the close requests that wait for an agent which sends data for connections that do not exist. A
	// dropped one does no harm: the next packet of that connection asks for it again.
	maxControl = 1024
)

func newSession(peer *peerIdentity, agentID string, lane dialer.Purpose, stream packetStream, receiveBuffer int, silentAfter time.Duration, logger klog.Logger) *session {
	s := &session{
		peer: peer, agentID: agentID, lane: lane, since: time.Now(), stream: stream,
		receiveBuffer: receiveBuffer, silentAfter: silentAfter, logger: logger,
		dials: map[int64]*pendingDial{}, conns: map[int64]*tunnelConn{},
		wake: make(chan struct{}, 1), done: make(chan struct{}),
	}
	s.drained = s.drain
	return s
}

// end fails everything that is open or under way. Only the first call counts.
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
		d.answer <- dialAnswer{err: &dialer.Error{Cluster: s.peer.cluster, Stage: dialer.StageAgent, Address: d.address, Err: why}}
	}
	for _, c := range conns {
		c.CloseRemote(why)
	}
}

// noConnection is an ID that no connection has.
const noConnection = 0

// dial asks the agent to connect to address. What the connection holds counts against the budget. When it returns a connection, it is known
// whether the agent was draining when it was asked.
func (s *session) dial(ctx context.Context, address string, budget *dialer.Budget) (net.Conn, error) {
	if ctx.Err() != nil { // or an answer that comes quickly would do as well as the context's end
		return nil, s.agentError(address, fmt.Errorf("%w: %w", errNoAnswer, context.Cause(ctx)))
	}
	d := &pendingDial{address: address, budget: budget, answer: make(chan dialAnswer, 1)}
	id := rand.Int64N(1<<62) + 1
	began := time.Now()
	s.mu.Lock()
	if s.ended != nil {
		s.mu.Unlock()
		return nil, s.agentError(address, s.ended)
	}
	s.dials[id] = d
	// The stock agent says that it drains between two packets only: of a stream that has been quiet, this one tells before the answer.
	s.control = append(s.control, closeRequest(noConnection), &client.Packet{
		Type:    client.PacketType_DIAL_REQ,
		Payload: &client.Packet_DialRequest{DialRequest: &client.DialRequest{Protocol: "tcp", Address: address, Random: id}},
	})
	s.mu.Unlock()
	s.wakeSender()

	select {
	case a := <-d.answer:
		return a.result()
	case <-ctx.Done():
	}
	s.mu.Lock()
	_, pending := s.dials[id]
	delete(s.dials, id) // an answer that comes later is closed by answerDial
	s.mu.Unlock()
	if !pending {
		if a := <-d.answer; a.conn != nil {
			_ = a.conn.Close() // never used; Close of a fresh connection only announces itself
		}
	}
	// A caller that gives up early says nothing about the agent.
	if pending && time.Since(began) >= s.silentAfter {
		s.unanswered.Store(true)
	}
	return nil, s.agentError(address, fmt.Errorf("%w: %w", errNoAnswer, context.Cause(ctx)))
}

// result keeps a nil *tunnelConn from becoming a non-nil net.Conn.
func (a dialAnswer) result() (net.Conn, error) {
	if a.err != nil {
		return nil, a.err
	}
	return a.conn, nil
}

func (s *session) agentError(address string, err error) error {
	return &dialer.Error{Cluster: s.peer.cluster, Stage: dialer.StageAgent, Address: address, Err: err}
}

func (s *session) wakeSender() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// announce is called by a connection that has something to send.
func (s *session) announce(c *tunnelConn) {
	s.mu.Lock()
	if s.ended == nil && !c.queued {
		c.queued = true
		s.ready = append(s.ready, c)
	}
	s.mu.Unlock()
	s.wakeSender()
}

// sendLoop is the only sender on the stream. It ends when the session does.
func (s *session) sendLoop() {
	data := &client.Data{}
	// Send has encoded a packet when it returns, so one will do for all data.
	packet := &client.Packet{Type: client.PacketType_DATA, Payload: &client.Packet_Data{Data: data}}
	for {
		select {
		case <-s.wake:
		case <-s.done:
			return
		}
		for {
			control, c := s.nextTurn()
			if len(control) == 0 && c == nil {
				break
			}
			err := s.sendControl(control)
			if err == nil && c != nil {
				err = s.sendTurn(c, packet, data)
			}
			if err != nil {
				s.end(err)
				return
			}
		}
	}
}

func (s *session) send(p *client.Packet) error {
	s.sendingSince.Store(time.Now().UnixNano())
	defer s.sendingSince.Store(0)
	if err := s.stream.Send(p); err != nil {
		return fmt.Errorf("%w: %w", errAgentGone, err)
	}
	return nil
}

// stalled says whether a Send has been under way for longer than limit.
func (s *session) stalled(now time.Time, limit time.Duration) bool {
	since := s.sendingSince.Load()
	return since != 0 && now.Sub(time.Unix(0, since)) > limit
}

// nextTurn returns all control packets, and the connection whose turn it is.
func (s *session) nextTurn() ([]*client.Packet, *tunnelConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	control := s.control
	s.control = nil
	if len(s.ready) == 0 {
		return control, nil
	}
	c := s.ready[0]
	s.ready[0] = nil
	s.ready = s.ready[1:]
	// Cleared before the bytes are taken: what is written in between queues the connection again.
	c.queued = false
	return control, c
}

func (s *session) sendControl(packets []*client.Packet) error {
	for _, p := range packets {
		if err := s.send(p); err != nil {
			return err
		}
	}
	return nil
}

// sendTurn sends one packet's worth of what c has, in packet, whose payload data is.
func (s *session) sendTurn(c *tunnelConn, packet *client.Packet, data *client.Data) error {
	p, more, end := c.TakeOutgoing()
	if more {
		s.announce(c)
	}
	if len(p) > 0 {
		data.ConnectID, data.Data = c.id, p
		err := s.send(packet)
		data.Data = nil
		if err != nil {
			return err
		}
	}
	if !end {
		return nil
	}
	s.mu.Lock()
	if s.conns[c.id] == c {
		c.closing = true
		s.closing++
	}
	tooMany := s.closing > maxClosing
	s.mu.Unlock()
	if tooMany {
		return fmt.Errorf("%w: it does not confirm that connections are closed", errProtocol)
	}
	return s.send(closeRequest(c.id))
}

// closeLocked asks the agent to close a connection that it thinks there is.
func (s *session) closeLocked(id int64) {
	if len(s.control) < maxControl {
		s.control = append(s.control, closeRequest(id))
	}
}

func closeRequest(id int64) *client.Packet {
	return &client.Packet{
		Type:    client.PacketType_CLOSE_REQ,
		Payload: &client.Packet_CloseRequest{CloseRequest: &client.CloseRequest{ConnectID: id}},
	}
}

// receiveLoop handles what the agent sends until the stream or the session ends. Nothing in it blocks but Recv.
func (s *session) receiveLoop() {
	var in inbound
	defer in.release()
	for {
		if err := s.stream.Recv(&in); err != nil {
			if errors.Is(err, io.EOF) {
				err = errors.New("closed by the agent")
			}
			s.end(fmt.Errorf("%w: %w", errAgentGone, err))
			return
		}
		s.unanswered.Store(false)
		if in.packet == nil {
			s.deliver(in.connectID, in.data)
			continue
		}
		if err := s.handle(in.packet); err != nil {
			s.end(err)
			return
		}
	}
}

func (s *session) handle(p *client.Packet) error {
	switch p.GetType() {
	case client.PacketType_DIAL_RSP:
		return s.answerDial(p.GetDialResponse())
	case client.PacketType_DIAL_CLS:
		s.closeDial(p.GetCloseDial().GetRandom())
	case client.PacketType_DATA:
		s.deliver(p.GetData().GetConnectID(), p.GetData().GetData())
	case client.PacketType_CLOSE_RSP:
		s.closeConn(p.GetCloseResponse())
	case client.PacketType_DRAIN:
		s.drained()
	default:
		// Newer agents may say more than this server understands.
		s.logger.V(4).Info("Ignored a packet of a type that agents do not send", "type", p.GetType())
	}
	return nil
}

func (s *session) answerDial(r *client.DialResponse) error {
	s.mu.Lock()
	if s.ended != nil {
		s.mu.Unlock()
		return nil // the session's end is known; this answer just came too late
	}
	d := s.dials[r.GetRandom()]
	delete(s.dials, r.GetRandom())
	switch {
	case d == nil && r.GetError() == "" && r.GetConnectID() != 0:
		// The dial has given up meanwhile. An ID that is in use is not one that this answer could be about.
		if s.conns[r.GetConnectID()] == nil {
			s.closeLocked(r.GetConnectID())
		}
		s.mu.Unlock()
		s.wakeSender()
		return nil
	case d == nil:
		s.mu.Unlock()
		return nil
	case r.GetError() != "":
		s.mu.Unlock()
		d.answer <- dialAnswer{err: &dialer.Error{
			Cluster: s.peer.cluster, Stage: dialer.StageEndpoint, Address: d.address,
			Err: fmt.Errorf("the agent cannot dial it: %.300s", r.GetError()),
		}}
		return nil
	case r.GetConnectID() == 0 || s.conns[r.GetConnectID()] != nil:
		s.mu.Unlock()
		err := fmt.Errorf("%w: it answered a dial with the connection ID %d, which is zero or in use", errProtocol, r.GetConnectID())
		d.answer <- dialAnswer{err: s.agentError(d.address, err)}
		return err
	}
	c := &tunnelConn{id: r.GetConnectID()}
	c.BufferedConn = dialer.NewBufferedConn(dialer.BufferedConnConfig{
		Local: dialer.Addr{Name: "tunnel"}, Remote: dialer.Addr{Name: s.peer.cluster + "/" + d.address},
		ReceiveBuffer: s.receiveBuffer, Budget: d.budget, Ready: func() { s.announce(c) },
	})
	s.conns[c.id] = c
	s.left = false
	s.mu.Unlock()
	d.answer <- dialAnswer{conn: c}
	return nil
}

func (s *session) closeDial(id int64) {
	s.mu.Lock()
	d := s.dials[id]
	delete(s.dials, id)
	s.mu.Unlock()
	if d != nil {
		d.answer <- dialAnswer{err: s.agentError(d.address, errors.New("the agent gave the dial up"))}
	}
}

// deliver hands what an agent sends to the connection, which copies it.
func (s *session) deliver(id int64, data []byte) {
	s.mu.Lock()
	c := s.conns[id]
	if c == nil && s.ended == nil && id != 0 {
		s.closeLocked(id)
	}
	s.mu.Unlock()
	if c == nil {
		s.wakeSender()
		return
	}
	if err := c.Deliver(data); err != nil {
		s.logger.Info("Closed a connection", "remote", c.RemoteAddr(), "reason", err.Error())
	}
}

func (s *session) closeConn(r *client.CloseResponse) {
	s.mu.Lock()
	c := s.conns[r.GetConnectID()]
	delete(s.conns, r.GetConnectID())
	if c != nil && c.closing {
		s.closing--
	}
	s.mu.Unlock()
	if c == nil {
		return
	}
	var err error
	if r.GetError() != "" {
		err = fmt.Errorf("closed by the agent: %.300s", r.GetError())
	}
	c.CloseRemote(err)
}

// leave is whether the agent drains and has connections that this has not been said of yet.
func (s *session) leave() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.draining || s.left || len(s.conns)-s.closing == 0 {
		return false
	}
	s.left = true
	return true
}

// drain notes that the agent is about to end.
func (s *session) drain() {
	s.mu.Lock()
	already := s.draining
	s.draining = true
	s.mu.Unlock()
	if !already {
		s.logger.Info("The agent is draining: it gets no new connections while there is another")
	}
}

// drains is whether the agent has said that it is about to end.
func (s *session) drains() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.draining
}

// load is what choosing between sessions goes by.
func (s *session) load() (open int, draining, unanswered bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns) + len(s.dials) - s.closing, s.draining, s.unanswered.Load()
}
