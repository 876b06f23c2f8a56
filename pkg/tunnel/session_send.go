// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"fmt"
	"time"

	"sigs.k8s.io/apiserver-network-proxy/konnectivity-client/proto/client"
)

func (s *session) wakeSender() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// enqueue puts a connection that has something to send into the queue.
func (s *session) enqueue(c *tunnelConn) {
	s.mu.Lock()
	if s.ended == nil && !c.queued {
		c.queued = true
		s.ready = append(s.ready, c)
	}
	s.mu.Unlock()
	s.wakeSender()
}

// sendLoop is the only sender on the stream. It returns when the session ends.
func (s *session) sendLoop() {
	data := &client.Data{}
	// Send has encoded a packet when it returns, so one packet serves for all data.
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

// stalled reports whether a Send has been under way for longer than limit.
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
	// This is cleared before the bytes are taken: a Write in between enqueues the connection again.
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

// sendTurn sends one packet of c's bytes. It uses packet, whose payload is data.
func (s *session) sendTurn(c *tunnelConn, packet *client.Packet, data *client.Data) error {
	p, more, end := c.TakeOutgoing()
	if more {
		s.enqueue(c)
	}
	if len(p) > 0 {
		data.ConnectID, data.Data = c.id, p
		c.sent.Store(time.Now().UnixNano())
		err := s.send(packet)
		data.Data = nil
		if err != nil {
			return err
		}
		if s.agent != nil {
			s.agent.sent.Add(int64(len(p)))
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

// closeLocked asks the agent to close a connection that does not exist on this side.
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
