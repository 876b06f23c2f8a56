// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package dialer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"sigs.k8s.io/apiserver-network-proxy/konnectivity-client/proto/client"
)

// What a konnectivity-server says in place of the agent. The protocol has no code for it: the text is all there is
// (apiserver-network-proxy, pkg/server: ErrNotFound, errBackendDialTimeout).
const (
	noAgentMessage      = "No agent available"
	agentTimeoutMessage = "timed out waiting for backend dial"
)

const (
	// konnectivityAttempt is how long a dial waits for one server while there is another to try. A server whose agent dies
	// with the dial under way never answers it (apiserver-network-proxy #126).
	konnectivityAttempt = 6 * time.Second
	// closeTimeout is how long a connection that was closed may take to send what it still has and to be told of its end.
	// After that its stream is reset, which the server takes for a close as well.
	closeTimeout = 5 * time.Second
)

// KonnectivityConfig is what a Konnectivity needs.
type KonnectivityConfig struct {
	// Servers are the stock konnectivity-servers: "host:port", or "unix:///path". At least one.
	Servers []string
	// TLS authenticates both sides to each other on host:port servers; Unix sockets use none.
	TLS credentials.TransportCredentials
	// PlainText are the credentials for Unix sockets; nil means none.
	PlainText credentials.TransportCredentials
	// ReceiveBuffer is BufferedConn's; 0 for its default.
	ReceiveBuffer int

	// attemptTimeout is the constant konnectivityAttempt, unless a test in this package says otherwise.
	attemptTimeout time.Duration
}

// Konnectivity holds one gRPC connection to each of some stock konnectivity-servers, and makes Dialers that share them. Each
// dialled connection is a stream of its own, as the servers want it.
//
// It speaks the protocol of konnectivity-client itself, and does not use that module's tunnel: there, a connection that ends, or
// whose first bytes arrive, in the moment after the dial's answer is lost and never ends; a Write that is blocked cannot be
// closed; and every end looks like io.EOF.
type Konnectivity struct {
	blocks         Blocks
	receiveBuffer  int
	attemptTimeout time.Duration
	servers        []*konnectivityServer
	// next spreads dials over the servers.
	next atomic.Uint32
	// ctx ends with Close, and with it all streams.
	ctx    context.Context
	cancel context.CancelFunc

	mu     sync.Mutex
	closed bool
	// busy counts dials and the goroutines of open connections. The first Add of each happens under mu and only while not
	// closed.
	busy sync.WaitGroup
}

type konnectivityServer struct {
	name string
	conn *grpc.ClientConn
}

// NewKonnectivity prepares the connections; they are made in the background, so that a server that is down does not keep the
// gateway from starting, and come back by themselves. They end with ctx, or with Close.
func NewKonnectivity(ctx context.Context, cfg KonnectivityConfig) (*Konnectivity, error) {
	if len(cfg.Servers) == 0 {
		return nil, errors.New("no konnectivity-server is given")
	}
	k := &Konnectivity{receiveBuffer: cfg.ReceiveBuffer, attemptTimeout: cmp.Or(cfg.attemptTimeout, konnectivityAttempt)}
	k.ctx, k.cancel = context.WithCancel(ctx)
	for _, name := range cfg.Servers {
		conn, err := cfg.connect(name)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("konnectivity-server %s: %w", name, err), k.Close())
		}
		conn.Connect()
		k.servers = append(k.servers, &konnectivityServer{name: name, conn: conn})
	}
	return k, nil
}

func (cfg *KonnectivityConfig) connect(name string) (*grpc.ClientConn, error) {
	if strings.HasPrefix(name, "unix://") {
		creds := cfg.PlainText
		if creds == nil {
			creds = insecure.NewCredentials()
		}
		return grpc.NewClient(name, grpc.WithTransportCredentials(creds))
	}
	if cfg.TLS == nil {
		return nil, errors.New("a server that is reached over the network needs TLS")
	}
	// A stock server takes HTTP/2 pings more often than every five minutes for an attack, and closes the connection with
	// everything on it. So the kernel looks after the connection: probes while it is idle, and a limit for unacknowledged
	// data, which gRPC sets to the keepalive's Timeout (TCP_USER_TIMEOUT).
	tcp := &net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3}}
	return grpc.NewClient("passthrough:///"+name,
		grpc.WithTransportCredentials(cfg.TLS),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return tcp.DialContext(ctx, "tcp", address)
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 6 * time.Minute, Timeout: 15 * time.Second}))
}

// Dialer returns the Dialer of one cluster. address, as host:port, is the only one that it dials; its host is what the
// konnectivity-server chooses the agent by (--proxy-strategies=destHost).
func (k *Konnectivity) Dialer(cluster, address string) Dialer {
	d := &konnectivityDialer{k: k, cluster: cluster, address: address, budget: NewBudget(k.receiveBuffer, &k.blocks)}
	d.used.Store(time.Now().UnixNano())
	d.Dialer = New(cluster, d.dial)
	return d
}

// Close ends every connection and waits.
func (k *Konnectivity) Close() error {
	k.mu.Lock()
	k.closed = true
	k.mu.Unlock()
	k.cancel()
	k.busy.Wait()
	var errs []error
	for _, s := range k.servers {
		// A second Close finds the connection closed: that is what it is for.
		if err := s.conn.Close(); err != nil && status.Code(err) != codes.Canceled {
			errs = append(errs, fmt.Errorf("konnectivity-server %s: %w", s.name, err))
		}
	}
	return errors.Join(errs...)
}

func (k *Konnectivity) begin() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.closed {
		k.busy.Add(1)
	}
	return !k.closed
}

// konnectivityDialer adds to what New makes that Close waits for the streams of its connections, too.
type konnectivityDialer struct {
	Dialer
	k                *Konnectivity
	cluster, address string
	budget           *Budget
	streams          sync.WaitGroup
	// used is when a dial last succeeded, or when the dialer was made, in Unix nanoseconds.
	used atomic.Int64
}

func (d *konnectivityDialer) lastUsed() time.Time { return time.Unix(0, d.used.Load()) }

func (d *konnectivityDialer) Close() error {
	err := d.Dialer.Close()
	d.streams.Wait()
	return err
}

// dial asks one server after the other while the answer is that it, or its way to an agent, is not there: an agent need not be
// connected to each of them.
func (d *konnectivityDialer) dial(ctx context.Context, _, requested string) (net.Conn, error) {
	if requested != d.address {
		return nil, &Error{Cluster: d.cluster, Stage: StageTunnel, Address: requested, Err: ErrAddressNotAllowed}
	}
	if !d.k.begin() {
		return nil, &Error{Cluster: d.cluster, Stage: StageTunnel, Address: requested, Err: net.ErrClosed}
	}
	defer d.k.busy.Done()

	servers := d.k.servers
	first := int(d.k.next.Add(1) % uint32(len(servers)))
	var failures []error
	var stage Stage
	for i := range servers {
		server := servers[(first+i)%len(servers)]
		attempt, cancel := ctx, context.CancelFunc(func() {})
		if i < len(servers)-1 {
			attempt, cancel = context.WithTimeout(ctx, d.k.attemptTimeout)
		}
		conn, at, err := d.dialOver(attempt, server)
		cancel()
		if err == nil {
			return conn, nil
		}
		// The failure that came furthest says most.
		if at != StageTunnel || stage == "" {
			stage = at
		}
		failures = append(failures, fmt.Errorf("konnectivity-server %s: %w", server.name, err))
		if ctx.Err() != nil || at == StageEndpoint {
			break
		}
	}
	return nil, &Error{Cluster: d.cluster, Stage: stage, Address: d.address, Err: errors.Join(failures...)}
}

// dialOver dials over one server. Its stream outlives ctx once the connection stands.
func (d *konnectivityDialer) dialOver(ctx context.Context, server *konnectivityServer) (net.Conn, Stage, error) {
	streamCtx, cancel := context.WithCancel(d.k.ctx)
	stop := context.AfterFunc(ctx, cancel)
	stream, id, stage, err := d.request(streamCtx, server)
	if !stop() {
		err = fmt.Errorf("no answer in time: %w", context.Cause(ctx))
	} else if d.k.ctx.Err() != nil {
		err = fmt.Errorf("the tunnel was closed: %w", net.ErrClosed)
	}
	if err != nil {
		cancel()
		return nil, stage, err
	}
	d.used.Store(time.Now().UnixNano())
	return d.serve(stream, cancel, id, server.name), "", nil
}

// request makes a stream and waits for the answer to the dial. The stage is that of err.
func (d *konnectivityDialer) request(ctx context.Context, server *konnectivityServer) (client.ProxyService_ProxyClient, int64, Stage, error) {
	stream, err := client.NewProxyServiceClient(server.conn).Proxy(ctx)
	if err != nil {
		return nil, 0, StageTunnel, err
	}
	random := rand.Int64N(1<<62) + 1
	// The error of a failed Send is what Recv returns.
	if err := stream.Send(&client.Packet{
		Type: client.PacketType_DIAL_REQ,
		Payload: &client.Packet_DialRequest{
			DialRequest: &client.DialRequest{Protocol: "tcp", Address: d.address, Random: random},
		},
	}); err != nil && !errors.Is(err, io.EOF) {
		return nil, 0, StageTunnel, err
	}
	for {
		p, err := stream.Recv()
		switch {
		case err != nil && ctx.Err() != nil:
			return nil, 0, StageAgent, err // the server took the dial, so the silence is the agent's
		case err != nil:
			return nil, 0, StageTunnel, err
		}
		switch r := p.GetDialResponse(); {
		case p.GetType() == client.PacketType_DIAL_CLS && p.GetCloseDial().GetRandom() == random:
			return nil, 0, StageAgent, errors.New("the agent gave the dial up")
		case p.GetType() != client.PacketType_DIAL_RSP || r.GetRandom() != random:
			// Not for this dial.
		case r.GetError() == noAgentMessage:
			return nil, 0, StageTunnel, &NoAgentError{External: true, Since: d.lastUsed()}
		case r.GetError() == agentTimeoutMessage:
			return nil, 0, StageAgent, errors.New("the agent did not answer the konnectivity-server in time")
		case r.GetError() != "":
			return nil, 0, StageEndpoint, fmt.Errorf("the agent cannot dial it: %.300s", r.GetError())
		case r.GetConnectID() == 0:
			return nil, 0, StageAgent, errors.New("the answer has no connection ID")
		default:
			return stream, r.GetConnectID(), "", nil
		}
	}
}

// serve makes the net.Conn of a stream that has been connected, and starts what carries its bytes.
func (d *konnectivityDialer) serve(stream client.ProxyService_ProxyClient, cancel context.CancelFunc, id int64, server string) net.Conn {
	c := &konnectivityConn{stream: stream, cancel: cancel, id: id, server: server,
		ready: make(chan struct{}, 1), remoteGone: make(chan struct{})}
	c.BufferedConn = NewBufferedConn(Addr{Name: "tunnel"}, Addr{Name: d.cluster + "/" + d.address}, d.k.receiveBuffer, d.budget, func() {
		select {
		case c.ready <- struct{}{}:
		default:
		}
	})
	// Both are counted while the dial still is, so neither Wait can have begun.
	d.streams.Add(2)
	d.k.busy.Add(2)
	done := func() { d.k.busy.Done(); d.streams.Done() }
	go func() { defer done(); c.receiveLoop() }()
	go func() { defer done(); c.sendLoop() }()
	return c
}

// konnectivityConn is a BufferedConn that a stream of its own carries.
type konnectivityConn struct {
	*BufferedConn
	stream client.ProxyService_ProxyClient
	cancel context.CancelFunc // resets the stream
	id     int64
	server string
	// ready has room for one token: there is something to send.
	ready      chan struct{}
	remoteGone chan struct{}
}

// Close implements net.Conn. It does not wait for the other end.
func (c *konnectivityConn) Close() error {
	err := c.BufferedConn.Close()
	c.resetLater()
	return err
}

// resetLater bounds how long the end may take; a Send that is blocked has no other way out.
func (c *konnectivityConn) resetLater() {
	select {
	case <-c.remoteGone:
	default:
		time.AfterFunc(closeTimeout, c.cancel)
	}
}

func (c *konnectivityConn) receiveLoop() {
	defer c.cancel()
	defer close(c.remoteGone)
	for {
		p, err := c.stream.Recv()
		if err != nil {
			c.CloseRemote(fmt.Errorf("the stream from konnectivity-server %s has ended: %w", c.server, err))
			return
		}
		switch p.GetType() {
		case client.PacketType_DATA:
			if d := p.GetData(); d.GetConnectID() == c.id && c.Deliver(d.GetData()) != nil {
				c.resetLater()
			}
		case client.PacketType_CLOSE_RSP:
			if r := p.GetCloseResponse(); r.GetConnectID() == c.id {
				var reason error
				if r.GetError() != "" {
					reason = fmt.Errorf("closed by the agent: %.300s", r.GetError())
				}
				c.CloseRemote(reason)
				return
			}
		}
	}
}

// sendLoop is the only sender on the stream. Errors of Send show in Recv, and so in receiveLoop.
func (c *konnectivityConn) sendLoop() {
	for {
		select {
		case <-c.ready:
		case <-c.remoteGone:
			return
		}
		for more := true; more; {
			var p []byte
			var end bool
			p, more, end = c.TakeOutgoing()
			if len(p) > 0 && c.stream.Send(&client.Packet{
				Type:    client.PacketType_DATA,
				Payload: &client.Packet_Data{Data: &client.Data{ConnectID: c.id, Data: p}},
			}) != nil {
				return
			}
			if end {
				// The answer, and with it the end of the stream, comes to receiveLoop.
				_ = c.stream.Send(&client.Packet{
					Type:    client.PacketType_CLOSE_REQ,
					Payload: &client.Packet_CloseRequest{CloseRequest: &client.CloseRequest{ConnectID: c.id}},
				})
				return
			}
		}
	}
}
