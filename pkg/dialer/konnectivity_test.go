// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package dialer_test

import (
	"context"
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
)

const registered = "127.0.0.1:6443"

// fakeServer is a konnectivity-server that answers a dial as it is told to.
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

// startFake serves a fakeServer and returns its name.
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

func says(fault string) func(client.ProxyService_ProxyServer, int64) error {
	return func(stream client.ProxyService_ProxyServer, dialID int64) error {
		return stream.Send(dialResponse(dialID, 0, fault))
	}
}

func untilReset(stream client.ProxyService_ProxyServer, _ int64) error {
	<-stream.Context().Done()
	return nil
}

func TestKonnectivityStages(t *testing.T) {
	for name, test := range map[string]struct {
		answers []func(client.ProxyService_ProxyServer, int64) error
		stage   dialer.Stage
		noAgent bool
	}{
		"no agent":        {answers: []func(client.ProxyService_ProxyServer, int64) error{says("No agent available")}, stage: dialer.StageTunnel, noAgent: true},
		"agent timed out": {answers: []func(client.ProxyService_ProxyServer, int64) error{says("timed out waiting for backend dial")}, stage: dialer.StageAgent},
		"refused":         {answers: []func(client.ProxyService_ProxyServer, int64) error{says("dial tcp: connection refused")}, stage: dialer.StageEndpoint},
		"no connection":   {answers: []func(client.ProxyService_ProxyServer, int64) error{says("")}, stage: dialer.StageAgent},
		"gave up": {answers: []func(client.ProxyService_ProxyServer, int64) error{func(s client.ProxyService_ProxyServer, id int64) error {
			return s.Send(&client.Packet{Type: client.PacketType_DIAL_CLS, Payload: &client.Packet_CloseDial{CloseDial: &client.CloseDial{Random: id}}})
		}}, stage: dialer.StageAgent},
		"broken stream": {answers: []func(client.ProxyService_ProxyServer, int64) error{func(client.ProxyService_ProxyServer, int64) error {
			return status.Error(codes.Internal, "broken")
		}}, stage: dialer.StageTunnel},
		"refused at one server, no agent at the other": {answers: []func(client.ProxyService_ProxyServer, int64) error{
			says("No agent available"), says("dial tcp: connection refused")}, stage: dialer.StageEndpoint},
	} {
		t.Run(name, func(t *testing.T) {
			var cfg dialer.KonnectivityConfig
			for _, answer := range test.answers {
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

// A server that is down, or that has no agent, is passed over; so no dial fails while one of them works.
func TestKonnectivityTriesAllServers(t *testing.T) {
	works := startFake(t, func(s client.ProxyService_ProxyServer, id int64) error {
		return errors.Join(s.Send(dialResponse(id, 7, "")), untilReset(s, id))
	})
	k := newKonnectivity(t, dialer.KonnectivityConfig{Servers: []string{
		"unix://" + filepath.Join(t.TempDir(), "down"), startFake(t, says("No agent available")), works,
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

// The end of a connection may come in the same breath as the answer to its dial, and says what it is.
func TestKonnectivityEnds(t *testing.T) {
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
					// The stream's end can overtake the dial that it ends.
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

// A server that takes nothing keeps a Write blocked; Close of the dialer ends it all the same.
func TestKonnectivityCloseOfBlockedWrite(t *testing.T) {
	k := newKonnectivity(t, dialer.KonnectivityConfig{Servers: []string{startFake(t, func(s client.ProxyService_ProxyServer, id int64) error {
		return errors.Join(s.Send(dialResponse(id, 7, "")), untilReset(s, id))
	})}})
	d := k.Dialer(cluster, registered)
	c, err := d.DialContext(t.Context(), "tcp", registered)
	if err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	go func() {
		_, err := c.Write(make([]byte, 16<<20))
		failed <- err
	}()
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if err := <-failed; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Write: %v, want net.ErrClosed", err)
	}
}

func TestKonnectivityConfig(t *testing.T) {
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

// A server whose agent died with the dial under way never answers; another one does.
func TestKonnectivitySilentServer(t *testing.T) {
	works := startFake(t, func(s client.ProxyService_ProxyServer, id int64) error {
		return errors.Join(s.Send(dialResponse(id, 7, "")), untilReset(s, id))
	})
	k := newKonnectivity(t, dialer.KonnectivityConfig{Servers: []string{startFake(t, untilReset), works}}.WithAttemptTimeout(2*time.Second)) // the one that works must never take as long
	d := k.Dialer(cluster, registered)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for range 2 { // each of the two is asked first once
		if _, err := d.DialContext(ctx, "tcp", registered); err != nil {
			// The silent one was the last to be asked only if the other had failed, which it does not.
			t.Fatalf("no answer from the server that works: %v", err)
		}
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}
