// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"sigs.k8s.io/apiserver-network-proxy/konnectivity-client/proto/client"

	"github.com/oam-dev/cluster-gateway/pkg/dialer"
	"github.com/oam-dev/cluster-gateway/pkg/dialer/dialertest"
)

// The agents in this file have a valid certificate, and attack the gateway. Each is named for what
// it does. An agent that repeats something does so until the gateway, or the test, ends its stream.

// rawCodec sends a []byte as it is, and everything else as CodecV2 does.
type rawCodec struct{ encoding.CodecV2 }

// Marshal implements encoding.CodecV2.
func (c rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	if raw, ok := v.([]byte); ok {
		return mem.BufferSlice{mem.SliceBuffer(raw)}, nil
	}
	return c.CodecV2.Marshal(v)
}

// forever sends what next returns, until the stream ends. It discards what it receives.
func (a *fakeAgent) forever(next func() *client.Packet) {
	received := make(chan struct{})
	go func() { defer close(received); _ = a.end() }()
	for a.stream.Send(next()) == nil { //nolint:revive // nothing else is to be done
	}
	<-received
}

// floodsUnknownConnections sends large packets of connections that do not exist.
func floodsUnknownConnections(a *fakeAgent) {
	packet := data(1, make([]byte, maxPacket-64))
	a.forever(func() *client.Packet { packet.GetData().ConnectID++; return packet })
}

// answersUnaskedDials answers dials that nobody has made.
func answersUnaskedDials(a *fakeAgent) {
	var id int64
	a.forever(func() *client.Packet { id++; return dialResponse(id, id, "") })
}

// failsUnaskedDials fails dials that nobody has made, with long texts.
func failsUnaskedDials(a *fakeAgent) {
	var id int64
	text := strings.Repeat("x", 256<<10)
	a.forever(func() *client.Packet { id++; return dialResponse(id, 0, text) })
}

// drainsAgain reports that it drains, again and again.
func drainsAgain(a *fakeAgent) {
	a.forever(func() *client.Packet { return &client.Packet{Type: client.PacketType_DRAIN} })
}

// sendsMalformedPacket answers the next dial with what is not a packet.
func sendsMalformedPacket(a *fakeAgent) {
	a.expect(client.PacketType_DIAL_REQ)
	_ = a.stream.SendMsg([]byte("\xff\xff\xff not a packet"))
	_ = a.end()
}

// sendsOversizedPacket answers the next dial with a packet that is larger than the gateway accepts.
func sendsOversizedPacket(a *fakeAgent) {
	a.expect(client.PacketType_DIAL_REQ)
	_ = a.stream.Send(data(1, make([]byte, maxPacket)))
	_ = a.end()
}

// answersNothing reads, and answers nothing.
func answersNothing(a *fakeAgent) { _ = a.end() }

// readsNothing does not even read.
func readsNothing(a *fakeAgent) { <-a.stream.Context().Done() }

// failsDial fails the next dial with a long text.
func failsDial(a *fakeAgent) {
	random := a.expect(client.PacketType_DIAL_REQ).GetDialRequest().GetRandom()
	a.send(dialResponse(random, 0, strings.Repeat("x", 256<<10)))
	_ = a.end()
}

// closesAgain accepts a dial, and closes the connection again and again.
func closesAgain(a *fakeAgent) {
	a.accept(1)
	a.forever(func() *client.Packet { return closeResponse(1, strings.Repeat("x", 1<<10)) })
}

// sendsAfterClose accepts a dial, closes the connection, and goes on sending.
func sendsAfterClose(a *fakeAgent) {
	a.accept(1)
	a.send(closeResponse(1, ""))
	packet := data(1, make([]byte, 32<<10))
	a.forever(func() *client.Packet { return packet })
}

// floodsConnection accepts a dial, and sends more than anybody reads.
func floodsConnection(a *fakeAgent) {
	a.accept(1)
	packet := data(1, make([]byte, 32<<10))
	a.forever(func() *client.Packet { return packet })
}

// floodsTinyPackets accepts a dial, and sends a byte at a time.
func floodsTinyPackets(a *fakeAgent) {
	a.accept(1)
	packet := data(1, []byte("x"))
	a.forever(func() *client.Packet { return packet })
}

// A hostile agent harms nobody. Its callers get an error that names the cluster. The connections of
// another cluster, and its own cluster's other agents, do not notice. The gateway's memory stays
// within bounds, and nothing is left behind.
func TestHostileAgents(t *testing.T) {
	const receiveBuffer = 1 << 20
	attacks := map[string]struct {
		attack func(*fakeAgent)
		// want is the stage at which the dial fails. If it is empty, the dial succeeds.
		want dialer.Stage
	}{
		"floods unknown connections": {floodsUnknownConnections, dialer.StageAgent},
		"answers unasked dials":      {answersUnaskedDials, dialer.StageAgent},
		"fails unasked dials":        {failsUnaskedDials, dialer.StageAgent},
		"drains again":               {drainsAgain, dialer.StageAgent},
		"sends malformed packet":     {sendsMalformedPacket, dialer.StageAgent},
		"sends oversized packet":     {sendsOversizedPacket, dialer.StageAgent},
		"answers nothing":            {answersNothing, dialer.StageAgent},
		"reads nothing":              {readsNothing, dialer.StageAgent},
		"fails dial":                 {failsDial, dialer.StageEndpoint},
		"closes again":               {closesAgain, ""},
		"sends after close":          {sendsAfterClose, ""},
		"floods connection":          {floodsConnection, ""},
		"floods tiny packets":        {floodsTinyPackets, ""},
	}
	for _, purpose := range []dialer.Purpose{dialer.ForRequests, dialer.ForUpgrades} {
		t.Run(purpose.String(), func(t *testing.T) {
			g := startGateway(t, func(c *Config) {
				c.ReceiveBuffer, c.attemptTimeout, c.ownStreamTimeout, c.stallTimeout = receiveBuffer, 2*time.Second, 10*time.Millisecond, 2*time.Second
			})
			g.connect(t, "good", "good").goEcho(nil)
			c := mustDial(t, g.dialer(t, "good", dialer.ForRequests))
			goroutines := runtime.NumGoroutine()
			stop := dialertest.DuringAttack(func() { mustEcho(t, c, "nobody else notices") })
			agents := map[string]*fakeAgent{}
			for name := range attacks {
				agents[name] = g.connect(t, clusterOf(name), "hostile")
			}
			// The agents that do not answer a dial have this much time. The others answer, but on a busy
			// machine it can take longer.
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			var attacking sync.WaitGroup
			dials := map[string]<-chan dialed{}
			for name, attack := range attacks {
				dialCtx := t.Context()
				if attack.want == dialer.StageAgent {
					dialCtx = ctx
				}
				dials[name] = goDial(dialCtx, g.dialer(t, clusterOf(name), purpose))
				attacking.Go(func() { attack.attack(agents[name]) })
			}
			var open []net.Conn // nobody reads them
			for name, dial := range dials {
				got := dialertest.Within(t, dial, name+": the dial")
				want := attacks[name].want
				var de *dialer.Error
				switch {
				case got.err == nil && want == "":
					open = append(open, got.conn)
				case !errors.As(got.err, &de) || de.Cluster != clusterOf(name) || de.Stage != want || len(de.Error()) > 1024:
					t.Errorf("%s: %v", name, got.err)
				}
			}
			<-ctx.Done()
			for _, c := range open {
				_ = c.Close()
			}
			if peak := stop(); peak > 128<<20 {
				t.Errorf("%d MiB of memory were in use", peak>>20)
			}
			for _, a := range agents {
				a.kill()
			}
			attacking.Wait()
			dialertest.Eventually(t, "the end of all streams", func() bool { return g.sessions() == 1 })
			dialertest.Eventually(t, "the end of all goroutines", func() bool { return runtime.NumGoroutine() <= goroutines+5 })
		})
	}
}

// clusterOf returns the name of the cluster that has the hostile agent of that name.
func clusterOf(agent string) string { return strings.ReplaceAll(agent, " ", "-") }

// sessions returns the number of all streams.
func (g *gateway) sessions() int {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return len(g.sessionsLocked())
}

// An agent cannot make the gateway keep a large header for each of its streams.
func TestHugeHeaderOfAgent(t *testing.T) {
	t.Parallel()
	g := startGateway(t, nil)
	ended := make(chan error, 1)
	go func() {
		a, err := g.open(t, g.tls(t, "east"), "a", "x", strings.Repeat("x", 2*maxHeader))
		if err == nil { // the client of this test may have learned the limit before it sends
			err = a.end()
		}
		ended <- err
	}()
	if err := dialertest.Within(t, ended, "the refusal"); g.sessions() != 0 {
		t.Errorf("%v, %d streams; want none", err, g.sessions())
	}
}

// An agent that floods its HTTP/2 connection with frames loses it, or waits. Nobody else notices.
func TestHostileFrames(t *testing.T) {
	g := startGateway(t, nil)
	g.connect(t, "good", "good").goEcho(nil)
	c := mustDial(t, g.dialer(t, "good", dialer.ForRequests))
	// The header of a stream that the gateway accepts.
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for _, f := range []hpack.HeaderField{
		{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "https"}, {Name: ":path", Value: "/AgentService/Connect"}, {Name: ":authority", Value: "x"},
		{Name: "content-type", Value: "application/grpc"}, {Name: "te", Value: "trailers"},
	} {
		if err := encoder.WriteField(f); err != nil {
			t.Fatal(err)
		}
	}
	var stream uint32
	header := func(f *http2.Framer, end bool) error {
		stream += 2
		return f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream - 1, BlockFragment: block.Bytes(), EndHeaders: end})
	}
	for name, write := range map[string]func(f *http2.Framer) error{
		"PING flood": func(f *http2.Framer) error { return f.WritePing(false, [8]byte{}) },
		"SETTINGS flood": func(f *http2.Framer) error {
			return f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1})
		},
		"rapid reset": func(f *http2.Framer) error {
			if err := header(f, true); err != nil {
				return err
			}
			return f.WriteRSTStream(stream-1, http2.ErrCodeCancel)
		},
		"too many streams": func(f *http2.Framer) error { return header(f, true) },
		"CONTINUATION flood": func(f *http2.Framer) error {
			if stream == 0 {
				return header(f, false)
			}
			return f.WriteContinuation(stream-1, false, []byte("\x00\x01a\x01x"))
		},
		"window overflow": func(f *http2.Framer) error { return f.WriteWindowUpdate(0, 1<<31-1) },
		"huge frame":      func(f *http2.Framer) error { return f.WriteRawFrame(http2.FrameData, 0, 1, make([]byte, 1<<20)) },
	} {
		t.Run(name, func(t *testing.T) {
			for _, reads := range []bool{true, false} {
				stream = 0
				conn, err := g.connectOnly(t, g.tls(t, "bad"))
				if err != nil {
					t.Fatal(err)
				}
				stop := dialertest.DuringAttack(func() { mustEcho(t, c, "nobody else notices") })
				flood(conn, reads, write)
				if peak := stop(); peak > 64<<20 {
					t.Errorf("%d MiB of memory were in use", peak>>20)
				}
			}
		})
	}
	dialertest.Eventually(t, "the end of all streams", func() bool { return g.sessions() == 1 })
}

// flood writes until the gateway closes the connection, or for half a second. Then it closes it.
func flood(conn *tls.Conn, reads bool, write func(f *http2.Framer) error) {
	_ = conn.SetDeadline(time.Now().Add(500 * time.Millisecond)) // the errors of what follows show it
	var reading sync.WaitGroup
	defer reading.Wait()
	defer conn.Close()
	if reads {
		reading.Go(func() { _, _ = io.Copy(io.Discard, conn) })
	}
	framer := http2.NewFramer(conn, nil)
	for write(framer) == nil { //nolint:revive // nothing else is to be done
	}
}

// Invalid packets end at most the stream on which they arrive.
func TestInvalidPackets(t *testing.T) {
	t.Parallel()
	g := startGateway(t, nil)
	good := g.connect(t, "east", "good").goEcho(nil)
	_ = good
	c := mustDial(t, g.dialer(t, "east", dialer.ForRequests))
	for name, packets := range map[string][]*client.Packet{
		"empty": {{}},
		"nil payloads": {
			{Type: client.PacketType_DIAL_RSP}, {Type: client.PacketType_DIAL_CLS}, {Type: client.PacketType_DATA},
			{Type: client.PacketType_CLOSE_RSP}, {Type: client.PacketType_DRAIN}, {Type: client.PacketType_CLOSE_REQ},
		},
		"payload of another type": {
			{Type: client.PacketType_DATA, Payload: &client.Packet_CloseResponse{CloseResponse: &client.CloseResponse{ConnectID: 1}}},
			{Type: client.PacketType_CLOSE_RSP, Payload: &client.Packet_Data{Data: &client.Data{ConnectID: 1}}},
		},
		"unknown type":            {{Type: 77}, {Type: -1}},
		"negative IDs":            {data(-1, []byte("x")), closeResponse(-1, ""), dialResponse(-1, -1, ""), dialResponse(-9, -1, "no")},
		"a packet of the gateway": {{Type: client.PacketType_DIAL_REQ, Payload: &client.Packet_DialRequest{DialRequest: &client.DialRequest{Protocol: "tcp", Address: "127.0.0.1:22"}}}},
		"many unknown IDs":        slices.Repeat([]*client.Packet{data(12, []byte("x"))}, 5000),
	} {
		t.Run(name, func(t *testing.T) {
			bad := g.connect(t, "west", "bad")
			bad.goDiscard()
			bad.send(packets...)
			// The other stream works and nothing hangs.
			mustEcho(t, c, "east is not affected")
			bad.kill()
		})
	}
	t.Run("duplicate connection ID", func(t *testing.T) {
		bad := g.connect(t, "west", "duplicate")
		d := g.dialer(t, "west", dialer.ForRequests)
		first := goDial(t.Context(), d)
		bad.accept(3)
		dialertest.Within(t, first, "the first dial")
		second := goDial(t.Context(), d)
		bad.accept(3)
		if r := dialertest.Within(t, second, "the second dial"); !errors.Is(r.err, errProtocol) {
			t.Errorf("%v, want %v", r.err, errProtocol)
		}
		if err := bad.end(); status.Code(err) != codes.InvalidArgument {
			t.Errorf("the stream ended with %v, want InvalidArgument", err)
		}
		mustEcho(t, c, "east is not affected")
	})
}

// goDiscard receives and discards packets in the background until the end of the test.
func (a *fakeAgent) goDiscard() {
	done := make(chan struct{})
	go func() { defer close(done); _ = a.end() }()
	a.t.Cleanup(func() { a.kill(); dialertest.Within(a.t, done, "the fake agent") })
}

// An agent that never confirms the end of connections cannot make its session grow forever.
func TestUnconfirmedCloses(t *testing.T) {
	t.Parallel()
	g := startGateway(t, nil)
	a := g.connect(t, "east", "a")
	go func() {
		for id := int64(1); ; {
			p, err := a.stream.Recv()
			if err != nil {
				return
			}
			if p.GetType() == client.PacketType_DIAL_REQ {
				if a.stream.Send(dialResponse(p.GetDialRequest().GetRandom(), id, "")) != nil {
					return
				}
				id++
			}
		}
	}()
	d := g.Dialer("east", apiServer, dialer.ForRequests)
	for i := range 2 * maxClosing {
		c, err := d.DialContext(t.Context(), "tcp", apiServer)
		if err != nil {
			if i < maxClosing {
				t.Errorf("after %d: %v", i, err)
			}
			return
		}
		_ = c.Close()
	}
	t.Error("the session grows without bound")
}
