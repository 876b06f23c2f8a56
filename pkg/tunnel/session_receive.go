// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"errors"
	"fmt"
	"io"
	"time"

	"sigs.k8s.io/apiserver-network-proxy/konnectivity-client/proto/client"
)

// receiveLoop handles the agent's packets until the stream or the session ends. Nothing in it
// blocks except Recv, as long as the stream has more than one connection.
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
		s.heard.Add(1)
		s.agent.spoke()
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

// handle handles one packet. It returns an error if the packet breaks the protocol.
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
		s.onDrain()
	default:
		// Newer agents may send packets that this server does not know.
		s.logger.V(4).Info("Ignored a packet of a type that agents do not send", "type", p.GetType())
	}
	return nil
}

// deliver gives data to its connection, which copies it.
func (s *session) deliver(id int64, data []byte) {
	s.mu.Lock()
	c, alone := s.conns[id], s.aloneLocked()
	if c == nil && s.ended == nil && id != 0 {
		s.closeLocked(id)
	}
	s.mu.Unlock()
	if c == nil {
		s.wakeSender()
		return
	}
	c.received.Store(time.Now().UnixNano())
	if s.agent != nil {
		s.agent.received.Add(int64(len(data)))
	}
	if alone {
		if resume := c.Accept(data); resume != nil {
			s.awaitReader(resume)
		}
		return
	}
	if err := c.Deliver(data); err != nil {
		s.logger.Info("Closed a connection", "remote", c.RemoteAddr(), "reason", err.Error())
	}
}

// closeConn handles the end of a connection.
func (s *session) closeConn(r *client.CloseResponse) {
	s.mu.Lock()
	c := s.conns[r.GetConnectID()]
	delete(s.conns, r.GetConnectID())
	if c != nil && c.closing {
		s.closing--
	}
	idle := s.idleLocked()
	if idle {
		s.idleSince = time.Now()
	}
	s.mu.Unlock()
	if idle {
		s.onIdle()
	}
	if c == nil {
		return
	}
	c.ended.Do(c.judgeEnd)
	var err error
	if r.GetError() != "" {
		err = fmt.Errorf("closed by the agent: %.300s", r.GetError())
	}
	c.CloseRemote(err)
}
