// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/metadata"
	"sigs.k8s.io/apiserver-network-proxy/konnectivity-client/proto/client"
	"sigs.k8s.io/apiserver-network-proxy/proto/agent"
	"sigs.k8s.io/apiserver-network-proxy/proto/header"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/dialer"
	"github.com/oam-dev/cluster-gateway/pkg/dialer/dialertest"
)

// apiServer is the registered address in tests with fake agents.
const apiServer = "10.0.0.1:6443"

func TestMain(m *testing.M) { dialertest.Main(m) }

// gateway is a running Server with the CA of its agents.
type gateway struct {
	*Server
	ca      *dialertest.CA
	address string
	// stop ends Serve and waits for it. The test calls it at its end at the latest.
	stop func()
}

// startGateway starts a Server. change, if not nil, changes its configuration.
func startGateway(t testing.TB, change func(*Config), subscribe ...func(*Server)) *gateway {
	t.Helper()
	g := &gateway{ca: dialertest.NewCA(t, "tunnel")}
	cfg := Config{ServerID: "replica", TLS: g.ca.ServerTLS(t)}
	if change != nil {
		change(&cfg)
	}
	g.Server = New(cfg)
	for _, s := range subscribe {
		s(g.Server)
	}
	lis := dialertest.Listen(t)
	g.address = lis.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- g.Serve(ctx, lis) }()
	var once sync.Once
	g.stop = func() {
		once.Do(func() {
			cancel()
			if err := dialertest.Within(t, served, "Serve"); err != nil {
				t.Errorf("Serve: %v", err)
			}
		})
	}
	t.Cleanup(g.stop)
	return g
}

// tls is the configuration of an agent of cluster.
func (g *gateway) tls(t testing.TB, cluster string) *tls.Config {
	return g.ca.ClientTLS(g.ca.Client(t, cluster, v1alpha1.AgentOrganization))
}

// startStockAgent starts a real agent and waits for its streams.
func (g *gateway) startStockAgent(t testing.TB, cluster, id string) *dialertest.Agent {
	t.Helper()
	a := dialertest.StartAgent(t, dialertest.AgentConfig{
		Address: g.address, CA: g.ca, Pair: g.ca.Client(t, cluster, v1alpha1.AgentOrganization), ID: id,
	})
	g.awaitParked(t, cluster, id)
	return a
}

// awaitStreams waits until the agent has n streams.
func (g *gateway) awaitStreams(t testing.TB, cluster, id string, n int) {
	t.Helper()
	dialertest.Eventually(t, "the agent's streams", func() bool { return g.streams(cluster, id) == n })
}

// awaitParked waits until the agent has a parked stream.
func (g *gateway) awaitParked(t testing.TB, cluster, id string) {
	t.Helper()
	dialertest.Eventually(t, "a parked stream", func() bool { return g.parked(cluster, id) == 1 })
}

// parked returns the number of the agent's parked streams.
func (g *gateway) parked(cluster, id string) (n int) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if c := g.clusters[cluster]; c != nil {
		for _, a := range c.agents {
			if strings.Trim(a.id, `"`) == id {
				n += len(a.parked)
			}
		}
	}
	return n
}

// candidates returns the streams for a dial, the best one first.
func (g *gateway) candidates(cluster string, purpose dialer.Purpose) (all []*session) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, o := range g.clusters[cluster].options(time.Now(), purpose, false, func(*session) bool { return false }) {
		all = append(all, o.se)
	}
	return all
}

// streams returns the number of the agent's streams in use.
func (g *gateway) streams(cluster, id string) (n int) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if c := g.clusters[cluster]; c != nil {
		for _, se := range c.sessions {
			if strings.Trim(se.agentID, `"`) == id {
				n++
			}
		}
	}
	return n
}

func (g *gateway) dialer(t testing.TB, cluster string, purpose dialer.Purpose) dialer.Dialer {
	t.Helper()
	d := g.Dialer(cluster, apiServer, purpose)
	t.Cleanup(func() { _ = d.Close() }) // the conformance suite tests its error
	return d
}

// fakeAgent is an agent whose packets the test sends and receives. It has a connection of its own.
type fakeAgent struct {
	t       testing.TB
	conn    *grpc.ClientConn
	stream  agent.AgentService_ConnectClient
	cancel  context.CancelFunc
	purpose dialer.Purpose
}

// connect opens a stream. It returns when the agent is in the gateway's table: the header comes
// after that.
func (g *gateway) connect(t testing.TB, cluster, id string) *fakeAgent {
	t.Helper()
	a, err := g.tryConnect(t, g.tls(t, cluster), id)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// park opens a stream, and returns when it is parked.
func (g *gateway) park(t testing.TB, cluster, id string) *fakeAgent {
	t.Helper()
	a, err := g.open(t, g.tls(t, cluster), id)
	if err != nil {
		t.Fatal(err)
	}
	g.awaitParked(t, cluster, id)
	return a
}

// tryConnect is connect with an error.
func (g *gateway) tryConnect(t testing.TB, cfg *tls.Config, id string) (*fakeAgent, error) {
	t.Helper()
	a, err := g.open(t, cfg, id)
	if err != nil {
		return nil, err
	}
	md, err := a.stream.Header()
	if err != nil {
		return nil, err
	}
	ids := md.Get(header.ServerID)
	if len(ids) == 0 {
		return nil, a.end()
	}
	g.mu.RLock()
	defer g.mu.RUnlock()
	for _, se := range g.sessionsLocked() {
		if se.serverID == ids[0] {
			a.purpose = se.purpose
		}
	}
	return a, nil
}

// open opens a stream, and does not wait for the header. more are pairs of metadata.
func (g *gateway) open(t testing.TB, cfg *tls.Config, id string, more ...string) (*fakeAgent, error) {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+g.address, grpc.WithTransportCredentials(credentials.NewTLS(cfg)),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(rawCodec{encoding.GetCodecV2(proto.Name)})))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(context.Background(),
		append([]string{header.AgentID, id, header.AgentIdentifiers, "host=" + id + "&host=127.0.0.1"}, more...)...))
	a := &fakeAgent{t: t, conn: conn, cancel: cancel}
	t.Cleanup(a.kill)
	a.stream, err = agent.NewAgentServiceClient(conn).Connect(ctx)
	return a, err
}

// kill cuts the agent's connection. It may be called more than once.
func (a *fakeAgent) kill() {
	a.cancel()
	_ = a.conn.Close() // fails the second time
}

// end returns the error with which the gateway ended the stream.
func (a *fakeAgent) end() error {
	for {
		if _, err := a.stream.Recv(); err != nil {
			return err
		}
	}
}

// send sends packets to the gateway.
func (a *fakeAgent) send(packets ...*client.Packet) {
	a.t.Helper()
	for _, p := range packets {
		if err := a.stream.Send(p); err != nil {
			a.t.Errorf("the fake agent cannot send: %v", err)
		}
	}
}

// expect returns the next packet, which must be of that type. It skips the packet that precedes
// each dial.
func (a *fakeAgent) expect(want client.PacketType) *client.Packet {
	a.t.Helper()
	p, err := a.stream.Recv()
	for err == nil && p.GetType() == client.PacketType_CLOSE_REQ && p.GetCloseRequest().GetConnectID() == noConnection {
		p, err = a.stream.Recv()
	}
	if err != nil {
		a.t.Errorf("the fake agent waits for %s: %v", want, err)
		return &client.Packet{}
	}
	if p.GetType() != want {
		a.t.Errorf("the fake agent received %s, want %s", p.GetType(), want)
	}
	return p
}

// accept answers the next dial with a connection ID.
func (a *fakeAgent) accept(id int64) {
	a.t.Helper()
	a.send(dialResponse(a.expect(client.PacketType_DIAL_REQ).GetDialRequest().GetRandom(), id, ""))
}

// echo answers dials and closes and sends data back, until the stream ends. If dials is not nil, it
// gets the address of each dial.
func (a *fakeAgent) echo(dials chan<- string) {
	var next int64
	for {
		p, err := a.stream.Recv()
		if err != nil {
			return
		}
		switch p.GetType() {
		case client.PacketType_DIAL_REQ:
			next++
			if dials != nil {
				dials <- p.GetDialRequest().GetAddress()
			}
			err = a.stream.Send(dialResponse(p.GetDialRequest().GetRandom(), next, ""))
		case client.PacketType_DATA:
			err = a.stream.Send(p)
		case client.PacketType_CLOSE_REQ:
			err = a.stream.Send(closeResponse(p.GetCloseRequest().GetConnectID(), ""))
		}
		if err != nil {
			return
		}
	}
}

// goEcho runs echo in the background until the end of the test.
func (a *fakeAgent) goEcho(dials chan<- string) *fakeAgent {
	done := make(chan struct{})
	go func() { defer close(done); a.echo(dials) }()
	a.t.Cleanup(func() { a.kill(); dialertest.Within(a.t, done, "the fake agent") })
	return a
}

func dialResponse(random, connectID int64, fault string) *client.Packet {
	return &client.Packet{Type: client.PacketType_DIAL_RSP, Payload: &client.Packet_DialResponse{
		DialResponse: &client.DialResponse{Random: random, ConnectID: connectID, Error: fault}}}
}

func closeResponse(id int64, fault string) *client.Packet {
	return &client.Packet{Type: client.PacketType_CLOSE_RSP, Payload: &client.Packet_CloseResponse{
		CloseResponse: &client.CloseResponse{ConnectID: id, Error: fault}}}
}

func data(id int64, p []byte) *client.Packet {
	return &client.Packet{Type: client.PacketType_DATA, Payload: &client.Packet_Data{Data: &client.Data{ConnectID: id, Data: p}}}
}

// dialed is the outcome of a dial.
type dialed struct {
	conn net.Conn
	err  error
}

func goDial(ctx context.Context, d dialer.Dialer) <-chan dialed {
	out := make(chan dialed, 1)
	go func() {
		c, err := d.DialContext(ctx, "tcp", apiServer)
		out <- dialed{c, err}
	}()
	return out
}

func mustDial(t testing.TB, d dialer.Dialer) net.Conn {
	t.Helper()
	got := dialertest.Within(t, goDial(t.Context(), d), "the dial")
	if got.err != nil {
		t.Fatal(got.err)
	}
	return got.conn
}

func mustEcho(t testing.TB, c net.Conn, text string) {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(dialertest.HangTimeout)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
		t.Fatalf("echo %q, %v; want %q", got, err, text)
	}
}

// readError reads until the connection fails.
func readError(c net.Conn) <-chan error {
	out := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, c)
		out <- err
	}()
	return out
}
