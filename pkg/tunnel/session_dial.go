// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"sigs.k8s.io/apiserver-network-proxy/konnectivity-client/proto/client"

	"github.com/oam-dev/cluster-gateway/pkg/dialer"
)

// noConnection is an ID that no connection has.
const noConnection = 0

// pendingDial waits for the agent's answer.
type pendingDial struct {
	address string
	budget  *dialer.Budget // for the connection
	// answer has room for one value, so that the receive loop never waits for a dial that has given
	// up.
	answer chan dialAnswer
}

type dialAnswer struct {
	conn *tunnelConn
	err  error
}

// dial asks the agent to connect to address. The bytes that the connection buffers count against
// budget. When dial returns a connection, isDraining reports whether the agent was draining when it
// was asked.
func (s *session) dial(ctx context.Context, address string, budget *dialer.Budget) (*tunnelConn, error) {
	if ctx.Err() != nil { // otherwise a quick answer could win over the end of ctx
		return nil, s.agentError(address, fmt.Errorf("%w: %w", errNoAnswer, context.Cause(ctx)))
	}
	d := &pendingDial{address: address, budget: budget, answer: make(chan dialAnswer, 1)}
	id := rand.Int64N(1<<62) + 1
	began, heard := time.Now(), s.heard.Load()
	s.mu.Lock()
	if s.ended != nil {
		s.mu.Unlock()
		return nil, s.agentError(address, s.ended)
	}
	s.dials[id] = d
	// The stock agent reports that it drains between two packets only. On a quiet stream, the extra
	// packet makes it report that before it answers the dial.
	s.control = append(s.control, closeRequest(noConnection), &client.Packet{
		Type:    client.PacketType_DIAL_REQ,
		Payload: &client.Packet_DialRequest{DialRequest: &client.DialRequest{Protocol: "tcp", Address: address, Random: id}},
	})
	s.mu.Unlock()
	s.wakeSender()

	select {
	case a := <-d.answer:
		return a.conn, a.err
	case <-ctx.Done():
	}
	s.mu.Lock()
	_, pending := s.dials[id]
	delete(s.dials, id) // answerDial closes the connection of a late answer
	s.mu.Unlock()
	if !pending {
		if a := <-d.answer; a.conn != nil {
			_ = a.conn.Close() // it has not been used
		}
	}
	// A caller that gives up early says nothing about the agent.
	if pending && time.Since(began) >= s.cfg.attemptTimeout {
		s.unanswered.Store(true)
		s.agent.failed(errNoAnswer, 1)
		if s.heard.Load() == heard {
			s.agent.fellSilent()
		}
	}
	return nil, s.agentError(address, fmt.Errorf("%w: %w", errNoAnswer, context.Cause(ctx)))
}

// answerDial handles the agent's answer to a dial. It returns an error if the answer breaks the
// protocol.
func (s *session) answerDial(r *client.DialResponse) error {
	s.mu.Lock()
	if s.ended != nil {
		s.mu.Unlock()
		return nil // end has already failed the dial
	}
	d := s.dials[r.GetRandom()]
	delete(s.dials, r.GetRandom())
	switch {
	case d == nil && r.GetError() == "" && r.GetConnectID() != 0:
		// The dial has given up. If the ID is in use, it belongs to another connection.
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
	c := s.newConnLocked(r.GetConnectID(), d)
	s.mu.Unlock()
	d.answer <- dialAnswer{conn: c}
	return nil
}

func (s *session) newConnLocked(id int64, d *pendingDial) *tunnelConn {
	c := &tunnelConn{id: id, session: s}
	c.BufferedConn = dialer.NewBufferedConn(dialer.BufferedConnConfig{
		Local: dialer.Addr{Name: "tunnel"}, Remote: dialer.Addr{Name: s.peer.cluster + "/" + d.address},
		ReceiveBuffer: s.cfg.ReceiveBuffer, Budget: d.budget, Ready: func() { s.enqueue(c) },
	})
	s.conns[id] = c
	s.leaving = false
	return c
}

// closeDial handles an agent that gives up a dial.
func (s *session) closeDial(id int64) {
	s.mu.Lock()
	d := s.dials[id]
	delete(s.dials, id)
	s.mu.Unlock()
	if d != nil {
		d.answer <- dialAnswer{err: s.agentError(d.address, errors.New("the agent gave up the dial"))}
	}
}
