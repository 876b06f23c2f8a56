// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package dialer_test

import (
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"sigs.k8s.io/apiserver-network-proxy/konnectivity-client/proto/client"

	"github.com/oam-dev/cluster-gateway/pkg/dialer"
	"github.com/oam-dev/cluster-gateway/pkg/dialer/dialertest"
)

const registered = "127.0.0.1:6443"

// fakeServer is a konnectivity-server that answers a dial with answer.
type fakeServer struct {
	client.UnimplementedProxyServiceServer
	answer func(stream client.ProxyService_ProxyServer, dialID int64) error
}

func (f *fakeServer) Proxy(stream client.ProxyService_ProxyServer) error {
	p, err := stream.Recv()
	if err != nil {
		return err
	}
	return f.answer(stream, p.GetDialRequest().GetRandom())
}

// startFake starts a fakeServer and returns its name, as in KonnectivityConfig.Servers.
func startFake(t *testing.T, answer func(stream client.ProxyService_ProxyServer, dialID int64) error) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	lis, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.WaitForHandlers(true))
	client.RegisterProxyServiceServer(s, &fakeServer{answer: answer})
	served := make(chan error, 1)
	go func() { served <- s.Serve(lis) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return "unix://" + path
}

func dialResponse(dialID, connectID int64, fault string) *client.Packet {
	return &client.Packet{Type: client.PacketType_DIAL_RSP, Payload: &client.Packet_DialResponse{
		DialResponse: &client.DialResponse{Random: dialID, ConnectID: connectID, Error: fault}}}
}

func closeResponse(connectID int64, fault string) *client.Packet {
	return &client.Packet{Type: client.PacketType_CLOSE_RSP, Payload: &client.Packet_CloseResponse{
		CloseResponse: &client.CloseResponse{ConnectID: connectID, Error: fault}}}
}

// answers returns an answer to a dial with that error; "" is success with a connection ID of 0.
func answers(fault string) func(client.ProxyService_ProxyServer, int64) error {
	return func(stream client.ProxyService_ProxyServer, dialID int64) error {
		return stream.Send(dialResponse(dialID, 0, fault))
	}
}

// untilReset does nothing until the client resets the stream: a server, or an agent, that hangs.
func untilReset(stream client.ProxyService_ProxyServer, _ int64) error {
	<-stream.Context().Done()
	return nil
}

// acceptAndHang answers the dial and then neither reads nor writes.
func acceptAndHang(stream client.ProxyService_ProxyServer, dialID int64) error {
	return errors.Join(stream.Send(dialResponse(dialID, 7, "")), untilReset(stream, dialID))
}

// TestKonnectivityStages shows at which stage each failure is reported.
func TestKonnectivityStages(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		servers []func(client.ProxyService_ProxyServer, int64) error
		stage   dialer.Stage
		noAgent bool
	}{
		"no agent":        {servers: []func(client.ProxyService_ProxyServer, int64) error{answers("No agent available")}, stage: dialer.StageTunnel, noAgent: true},
		"agent timed out": {servers: []func(client.ProxyService_ProxyServer, int64) error{answers("timed out waiting for backend dial")}, stage: dialer.StageAgent},
		"refused":         {servers: []func(client.ProxyService_ProxyServer, int64) error{answers("dial tcp: connection refused")}, stage: dialer.StageEndpoint},
		"no connection":   {servers: []func(client.ProxyService_ProxyServer, int64) error{answers("")}, stage: dialer.StageAgent},
		"gave up": {servers: []func(client.ProxyService_ProxyServer, int64) error{func(s client.ProxyService_ProxyServer, id int64) error {
			return s.Send(&client.Packet{Type: client.PacketType_DIAL_CLS, Payload: &client.Packet_CloseDial{CloseDial: &client.CloseDial{Random: id}}})
		}}, stage: dialer.StageAgent},
		"broken stream": {servers: []func(client.ProxyService_ProxyServer, int64) error{func(client.ProxyService_ProxyServer, int64) error {
			return status.Error(codes.Internal, "broken")
		}}, stage: dialer.StageTunnel},
		"refused at one server, no agent at the other": {servers: []func(client.ProxyService_ProxyServer, int64) error{
			answers("No agent available"), answers("dial tcp: connection refused")}, stage: dialer.StageEndpoint},
	} {
		t.Run(name, func(t *testing.T) {
			var cfg dialer.KonnectivityConfig
			for _, answer := range test.servers {
				cfg.Servers = append(cfg.Servers, startFake(t, answer))
			}
			d := newKonnectivity(t, cfg).Dialer(cluster, registered)
			_, err := d.DialContext(t.Context(), "tcp", registered)
			var de *dialer.Error
			if !errors.As(err, &de) || de.Stage != test.stage {
				t.Errorf("error %v (%T), want stage %q", err, err, test.stage)
			}
			var none *dialer.NoAgentError
			if errors.As(err, &none) != test.noAgent {
				t.Errorf("error %v: NoAgentError is %v, want %v", err, !test.noAgent, test.noAgent)
			}
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// A server that is down, or that has no agent, is skipped. No dial fails while another server
// works.
func TestKonnectivityTriesAllServers(t *testing.T) {
	t.Parallel()
	k := newKonnectivity(t, dialer.KonnectivityConfig{Servers: []string{
		"unix://" + filepath.Join(t.TempDir(), "down"), startFake(t, answers("No agent available")), startFake(t, acceptAndHang),
	}})
	d := k.Dialer(cluster, registered)
	for range 6 {
		c, err := d.DialContext(t.Context(), "tcp", registered)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := c.RemoteAddr().String(), cluster+"/"+registered; got != want {
			t.Errorf("remote address %q, want %q", got, want)
		}
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

// The end of a connection may arrive just after the answer to its dial. Its reason is not lost.
func TestKonnectivityEnds(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		after func(client.ProxyService_ProxyServer) error
		want  string // in the error; "EOF" for a clean end
	}{
		"clean":       {func(s client.ProxyService_ProxyServer) error { return s.Send(closeResponse(7, "")) }, "EOF"},
		"with reason": {func(s client.ProxyService_ProxyServer) error { return s.Send(closeResponse(7, "the fuse blew")) }, "the fuse blew"},
		"broken":      {func(client.ProxyService_ProxyServer) error { return status.Error(codes.Internal, "the line was cut") }, "the line was cut"},
		"not its own": {func(s client.ProxyService_ProxyServer) error {
			return errors.Join(s.Send(closeResponse(8, "somebody else's")), s.Send(closeResponse(7, "")))
		}, "EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			k := newKonnectivity(t, dialer.KonnectivityConfig{Servers: []string{startFake(t, func(s client.ProxyService_ProxyServer, id int64) error {
				return errors.Join(s.Send(dialResponse(id, 7, "")), test.after(s))
			})}})
			d := k.Dialer(cluster, registered)
			for range 50 {
				c, err := d.DialContext(t.Context(), "tcp", registered)
				if err != nil {
					// The end of the stream can overtake the answer to the dial.
					if !strings.Contains(err.Error(), test.want) {
						t.Fatal(err)
					}
					continue
				}
				_, err = c.Read(make([]byte, 1))
				if (test.want == "EOF") != (err == io.EOF) || !strings.Contains(err.Error(), test.want) {
					t.Fatalf("Read: %v, want %q", err, test.want)
				}
			}
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// Close of a dialer waits neither for a server that hangs nor for an agent that does not confirm
// the end of a connection. What it leaves behind ends with the Konnectivity.
func TestKonnectivityCloseDoesNotWait(t *testing.T) {
	t.Parallel()
	// hungServer accepts connections and does not even answer with HTTP/2 settings.
	hungServer := filepath.Join(t.TempDir(), "hung")
	lis, err := net.Listen("unix", hungServer)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = lis.Close() })
	for name, test := range map[string]struct {
		server string
		use    func(t *testing.T, d dialer.Dialer) (ended <-chan error)
		want   error
	}{
		"data that the server does not take": {startFake(t, acceptAndHang), func(t *testing.T, d dialer.Dialer) <-chan error {
			c := mustDial(t, d)
			written := make(chan error, 1)
			go func() {
				_, err := c.Write(make([]byte, 16<<20)) // more than all buffers on the way hold
				written <- err
			}()
			return written
		}, net.ErrClosed},
		"an end that the agent does not confirm": {startFake(t, acceptAndHang), func(t *testing.T, d dialer.Dialer) <-chan error {
			c := mustDial(t, d)
			if _, err := io.WriteString(c, "a request"); err != nil {
				t.Fatal(err)
			}
			read := make(chan error, 1)
			go func() {
				_, err := c.Read(make([]byte, 1))
				read <- err
			}()
			return read
		}, net.ErrClosed},
		"a dial that the agent does not answer":        {startFake(t, untilReset), startDial, net.ErrClosed},
		"a dial through a server that does not answer": {"unix://" + hungServer, startDial, net.ErrClosed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := dialer.KonnectivityConfig{Servers: []string{test.server}}.WithTimes(time.Hour, time.Hour)
			d := newKonnectivity(t, cfg).Dialer(cluster, registered)
			ended := test.use(t, d)
			closed := make(chan error, 1)
			go func() { closed <- d.Close() }()
			if err := dialertest.Within(t, closed, "Close"); err != nil {
				t.Error(err)
			}
			if err := dialertest.Within(t, ended, "the pending call"); !errors.Is(err, test.want) {
				t.Errorf("the pending call returned %v, want %v", err, test.want)
			}
		})
	}
}

// startDial starts a dial and returns when it is under way.
func startDial(t *testing.T, d dialer.Dialer) <-chan error {
	ctx := dialertest.NewObservedContext(t.Context())
	failed := make(chan error, 1)
	go func() {
		_, err := d.DialContext(ctx, "tcp", registered)
		failed <- err
	}()
	dialertest.Within(t, ctx.Observed(), "the start of the dial")
	return failed
}

func mustDial(t *testing.T, d dialer.Dialer) net.Conn {
	t.Helper()
	c, err := d.DialContext(t.Context(), "tcp", registered)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestKonnectivityConfig(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]dialer.KonnectivityConfig{
		"no server":                  {},
		"network server without TLS": {Servers: []string{"127.0.0.1:1"}},
	} {
		if _, err := dialer.NewKonnectivity(t.Context(), cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	k := newKonnectivity(t, dialer.KonnectivityConfig{Servers: []string{"unix:///nowhere"}})
	if err := errors.Join(k.Close(), k.Close()); err != nil {
		t.Errorf("Close: %v", err)
	}
	_, err := k.Dialer(cluster, registered).DialContext(t.Context(), "tcp", registered)
	if !errors.Is(err, net.ErrClosed) {
		t.Errorf("a dial after Close: %v, want net.ErrClosed", err)
	}
}

// All Dialers of a cluster share one budget, and those of another cluster have their own.
func TestKonnectivityBudgetOfCluster(t *testing.T) {
	t.Parallel()
	const limit = 2 << 20
	// The server fills the buffer of each connection and then marks its end.
	server := startFake(t, func(s client.ProxyService_ProxyServer, id int64) error {
		err := s.Send(dialResponse(id, 7, ""))
		for range limit / packetSize {
			err = errors.Join(err, s.Send(&client.Packet{Type: client.PacketType_DATA, Payload: &client.Packet_Data{
				Data: &client.Data{ConnectID: 7, Data: make([]byte, packetSize)}}}))
		}
		return errors.Join(err, s.Send(closeResponse(7, "")))
	})
	k := newKonnectivity(t, dialer.KonnectivityConfig{Servers: []string{server}, ReceiveBuffer: limit})
	requests, upgrades, other := k.Dialer("east", registered), k.Dialer("east", registered), k.Dialer("west", registered)
	// Writes fail when the end has arrived. The error is ErrBufferFull if the buffer did not suffice.
	dial := func(d dialer.Dialer) (full bool) {
		t.Helper()
		c := mustDial(t, d)
		for {
			if _, err := c.Write([]byte("x")); err != nil {
				return errors.Is(err, dialer.ErrBufferFull)
			}
			time.Sleep(time.Millisecond)
		}
	}
	for i, d := range []dialer.Dialer{requests, upgrades, requests, upgrades} {
		if dial(d) {
			t.Errorf("connection %d of 4 does not fit into the budget", i+1)
		}
	}
	if !dial(requests) || !dial(upgrades) {
		t.Error("a cluster has more than one budget")
	}
	if dial(other) {
		t.Error("another cluster has no budget of its own")
	}
}

// A server that never answers, because its agent has died during the dial, is given up after a time
// if there is another one.
func TestKonnectivitySilentServer(t *testing.T) {
	t.Parallel()
	asked := make(chan struct{})
	silent := startFake(t, func(s client.ProxyService_ProxyServer, id int64) error {
		close(asked)
		return untilReset(s, id)
	})
	// The first dial begins at the second server. The server that works comes last, so it has no
	// limit.
	cfg := dialer.KonnectivityConfig{Servers: []string{startFake(t, acceptAndHang), silent}}.WithTimes(time.Second, 0)
	mustDial(t, newKonnectivity(t, cfg).Dialer(cluster, registered))
	dialertest.Within(t, asked, "the silent server")
}
