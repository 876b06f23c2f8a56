// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"k8s.io/klog/v2"
	"sigs.k8s.io/apiserver-network-proxy/konnectivity-client/proto/client"

	"github.com/oam-dev/cluster-gateway/pkg/dialer"
	"github.com/oam-dev/cluster-gateway/pkg/dialer/dialertest"
)

// nowhere is a packetStream that discards what is sent and receives nothing.
type nowhere struct{ ended <-chan struct{} }

func (nowhere) Send(*client.Packet) error { return nil }

func (n nowhere) Recv(*inbound) error {
	<-n.ended
	return io.EOF
}

// handle neither panics nor blocks, whatever packets an agent sends in whatever state, and its
// counts stay consistent. The end of the session ends every dial and connection.
func FuzzHandle(f *testing.F) {
	for _, p := range []*client.Packet{
		{}, data(1, []byte("x")), data(-1, nil), closeResponse(1, "no"), dialResponse(1, 1, ""), dialResponse(2, 1, ""), dialResponse(3, 0, "no"),
		{Type: client.PacketType_DIAL_CLS, Payload: &client.Packet_CloseDial{CloseDial: &client.CloseDial{Random: 1}}},
		{Type: client.PacketType_DRAIN}, {Type: 99},
	} {
		raw, err := proto.Marshal(p)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(append([]byte{byte(len(raw))}, raw...))
	}
	f.Fuzz(func(t *testing.T, script []byte) {
		ended := make(chan struct{})
		s := newSession(&Config{ReceiveBuffer: 64, attemptTimeout: time.Second}, &peerIdentity{cluster: "east"}, "a", dialer.ForRequests, nowhere{ended}, klog.Logger{})
		sent := make(chan struct{})
		go func() { defer close(sent); s.sendLoop() }()
		// Some dials with the IDs in the corpus, and an open connection.
		answers := make([]chan dialAnswer, 0, 4)
		s.mu.Lock()
		for id := int64(1); id <= 4; id++ {
			d := &pendingDial{address: apiServer, answer: make(chan dialAnswer, 1)}
			s.dials[id] = d
			answers = append(answers, d.answer)
		}
		s.mu.Unlock()
		if err := s.handle(dialResponse(4, 4, "")); err != nil {
			t.Fatal(err)
		}
		var fault error
		for len(script) > 0 && fault == nil {
			n := min(int(script[0]), len(script)-1)
			var p client.Packet
			if proto.Unmarshal(script[1:1+n], &p) == nil {
				fault = s.handle(&p)
			}
			script = script[1+n:]
		}
		if fault != nil && !errors.Is(fault, errProtocol) {
			t.Errorf("handle: %v", fault)
		}
		s.mu.Lock()
		if len(s.control) > maxControl || s.closing < 0 || s.closing > len(s.conns) {
			t.Errorf("control %d, closing %d of %d", len(s.control), s.closing, len(s.conns))
		}
		s.mu.Unlock()

		close(ended)
		s.end(errAgentGone)
		<-sent
		for i, answer := range answers {
			a := dialertest.Within(t, answer, "a dial")
			c, err := a.conn, a.err
			if (c == nil) == (err == nil) {
				t.Fatalf("dial %d: %v, %v", i+1, c, err)
			}
			if err != nil {
				continue
			}
			if err := dialertest.Within(t, readError(c), "a connection"); err == nil || errors.Is(err, context.Canceled) {
				continue // ended by the agent, cleanly
			} else if !errors.Is(err, errAgentGone) && !errors.Is(err, dialer.ErrBufferFull) && err.Error() == "" {
				t.Errorf("connection %d: %v", i+1, err)
			}
		}
		if _, err := s.dial(t.Context(), apiServer, nil); !errors.Is(err, errAgentGone) {
			t.Errorf("a dial after the end: %v", err)
		}
		// Packets that are handled after the end have no effect.
		for _, p := range []*client.Packet{data(1, nil), closeResponse(1, ""), dialResponse(1, 1, "")} {
			if err := s.handle(p); err != nil {
				t.Errorf("after the end: %v", err)
			}
		}
	})
}
