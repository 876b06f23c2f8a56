// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package dialer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
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
)

const (
	// defaultAttemptTimeout is how long a dial waits for one server while there is another one to
	// try. A server whose agent disconnects during the dial never answers it
	// (apiserver-network-proxy #126).
	defaultAttemptTimeout = 6 * time.Second
	// defaultCloseTimeout is how long a closed connection may take to send what it still has and to
	// be told of its end. After that its stream is reset, which the server also takes as a close.
	defaultCloseTimeout = 5 * time.Second
)

// KonnectivityConfig configures a Konnectivity.
type KonnectivityConfig struct {
	// Servers are the stock konnectivity-servers, as "host:port" or "unix:///path". At least one is
	// required.
	Servers []string
	// TLS authenticates both sides to each other. host:port servers require it; Unix sockets do not
	// use it.
	TLS credentials.TransportCredentials
	// PlainText are the credentials for Unix sockets. nil means none.
	PlainText credentials.TransportCredentials
	// ReceiveBuffer is how many bytes each connection buffers; all connections of a cluster buffer at
	// most four times as many. 0 means DefaultReceiveBuffer.
	ReceiveBuffer int
	// Memory is what all connections take their buffers from, beyond MinReceiveBuffer for each. nil
	// means no limit other than ReceiveBuffer.
	Memory Memory

	// The constants default…, unless a test of this package sets another value.
	attemptTimeout, closeTimeout time.Duration
}

// Konnectivity keeps one gRPC connection to each of several stock konnectivity-servers and makes
// Dialers that share them. Each connection to an API server is a stream of its own, which is what
// the servers expect. It is safe for concurrent use. Use NewKonnectivity.
//
// It implements the protocol of konnectivity-client itself and does not use that module's tunnel.
// There, a connection that ends, or whose first bytes arrive, just after the answer to the dial is
// lost and never ends; a Write that is blocked cannot be closed; and every end looks like io.EOF.
type Konnectivity struct {
	cfg     KonnectivityConfig
	budgets *Budgets
	servers []*konnectivityServer
	// next spreads dials over the servers.
	next atomic.Uint32
	// ctx ends with Close, and with it all streams.
	ctx    context.Context
	cancel context.CancelFunc

	mu     sync.Mutex
	closed bool
	// running counts dials and the goroutines of open connections. The first Add of each dial is
	// called under mu and only while not closed.
	running sync.WaitGroup
}

type konnectivityServer struct {
	name string
	conn *grpc.ClientConn
}

// NewKonnectivity returns a Konnectivity whose connections to the servers are made in the
// background. A server that is down therefore does not keep the gateway from starting, and it is
// used again when it comes back. The connections end with ctx or with Close.
func NewKonnectivity(ctx context.Context, cfg KonnectivityConfig) (*Konnectivity, error) {
	if len(cfg.Servers) == 0 {
		return nil, errors.New("no konnectivity-server is given")
	}
	cfg.attemptTimeout = cmp.Or(cfg.attemptTimeout, defaultAttemptTimeout)
	cfg.closeTimeout = cmp.Or(cfg.closeTimeout, defaultCloseTimeout)
	k := &Konnectivity{cfg: cfg, budgets: NewBudgets(cfg.ReceiveBuffer, cfg.Memory)}
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
	// A stock server takes HTTP/2 pings more often than every five minutes for an attack and closes
	// the connection with everything on it. So the kernel supervises the connection: with probes
	// while it is idle, and with a limit for unacknowledged data (TCP_USER_TIMEOUT), which gRPC sets
	// to the keepalive's Timeout.
	tcp := &net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3}}
	return grpc.NewClient("passthrough:///"+name,
		grpc.WithTransportCredentials(cfg.TLS),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return tcp.DialContext(ctx, "tcp", address)
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 6 * time.Minute, Timeout: 15 * time.Second}))
}

// Dialer returns a Dialer of one cluster. It dials no other address than address, as host:port. The
// konnectivity-server chooses the agent by its host (--proxy-strategies=destHost). All Dialers of a
// cluster share one Budget.
func (k *Konnectivity) Dialer(cluster, address string) Dialer {
	d := &konnectivityDialer{k: k, cluster: cluster, address: address}
	d.lastUsed.Store(time.Now().UnixNano())
	return k.budgets.Dialer(cluster, d.dial)
}

// Close cancels all dials and resets all connections, also those whose Dialer was closed before and
// that still send. It waits until everything has ended. It is idempotent.
func (k *Konnectivity) Close() error {
	k.mu.Lock()
	k.closed = true
	k.mu.Unlock()
	k.cancel()
	k.running.Wait()
	var errs []error
	for _, s := range k.servers {
		// A second Close finds the connection closed, which is not a failure.
		if err := s.conn.Close(); err != nil && status.Code(err) != codes.Canceled {
			errs = append(errs, fmt.Errorf("konnectivity-server %s: %w", s.name, err))
		}
	}
	return errors.Join(errs...)
}

// begin counts a dial as running, and reports whether it may run.
func (k *Konnectivity) begin() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.closed {
		k.running.Add(1)
	}
	return !k.closed
}
