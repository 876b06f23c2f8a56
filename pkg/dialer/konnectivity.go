// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package dialer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	konnectivity "sigs.k8s.io/apiserver-network-proxy/konnectivity-client/pkg/client"
	konnectivitymetrics "sigs.k8s.io/apiserver-network-proxy/konnectivity-client/pkg/client/metrics"
)

// noAgentMessage is what a konnectivity-server answers to a dial for which it has no agent. The protocol has no code for
// it: the text is all there is (apiserver-network-proxy, pkg/server, ErrNotFound).
const noAgentMessage = "No agent available"

// KonnectivityConfig is what a Konnectivity needs.
type KonnectivityConfig struct {
	// Servers are the stock konnectivity-servers: "host:port", or "unix:///path". At least one.
	Servers []string
	// TLS authenticates both sides to each other on host:port servers; Unix sockets use none.
	TLS credentials.TransportCredentials
	// PlainText are the credentials for Unix sockets.
	PlainText credentials.TransportCredentials
	// ReceiveBuffer is BufferedConn's; 0 for its default.
	ReceiveBuffer int
}

// Konnectivity holds one gRPC connection to each of some stock konnectivity-servers, and makes Dialers that share them.
type Konnectivity struct {
	receiveBuffer int
	servers       []*konnectivityServer
	// next spreads dials over the servers.
	next atomic.Uint32
	// pumps counts the goroutines that carry the bytes of open connections.
	pumps sync.WaitGroup
}

type konnectivityServer struct {
	name   string
	tunnel konnectivity.ReusableTunnel
}

// NewKonnectivity prepares the connections; they are made in the background, so that a server that is down does not keep the
// gateway from starting, and come back by themselves.
func NewKonnectivity(ctx context.Context, cfg KonnectivityConfig) (*Konnectivity, error) {
	if len(cfg.Servers) == 0 {
		return nil, errors.New("no konnectivity-server is given")
	}
	k := &Konnectivity{receiveBuffer: cfg.ReceiveBuffer}
	for _, name := range cfg.Servers {
		creds := cfg.TLS
		if strings.HasPrefix(name, "unix://") {
			creds = cfg.PlainText
		}
		tunnel, err := konnectivity.CreateGRPCTunnel(ctx, name,
			grpc.WithTransportCredentials(creds),
			grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 15 * time.Second}))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("konnectivity-server %s: %w", name, err), k.Close())
		}
		k.servers = append(k.servers, &konnectivityServer{name: name, tunnel: tunnel})
	}
	return k, nil
}

// Dialer returns the Dialer of one cluster. address, as host:port, is the only one that it dials; its host is what the
// konnectivity-server chooses the agent by (--proxy-strategies=destHost).
func (k *Konnectivity) Dialer(cluster, address string) Dialer {
	return New(cluster, func(ctx context.Context, network, requested string) (net.Conn, error) {
		if requested != address {
			return nil, &Error{Cluster: cluster, Stage: StageTunnel, Address: requested, Err: ErrAddressNotAllowed}
		}
		return k.dial(ctx, cluster, address)
	})
}

// Close ends every connection and waits.
func (k *Konnectivity) Close() error {
	var errs []error
	for _, s := range k.servers {
		errs = append(errs, s.tunnel.Close())
	}
	k.pumps.Wait()
	return errors.Join(errs...)
}

// dial asks one server after the other while the answer is that it, or its way to an agent, is not there: an agent need not be
// connected to each of them.
func (k *Konnectivity) dial(ctx context.Context, cluster, address string) (net.Conn, error) {
	var failures []error
	stage := StageTunnel
	first := int(k.next.Add(1))
	for i := range k.servers {
		server := k.servers[(first+i)%len(k.servers)]
		inner, err := server.tunnel.DialContext(ctx, "tcp", address)
		if err == nil {
			return k.wrap(inner, cluster, address), nil
		}
		stage = konnectivityStage(err)
		if strings.Contains(err.Error(), noAgentMessage) {
			err = &NoAgentError{}
		}
		failures = append(failures, fmt.Errorf("konnectivity-server %s: %w", server.name, err))
		if ctx.Err() != nil || stage == StageEndpoint {
			break
		}
	}
	return nil, &Error{Cluster: cluster, Stage: stage, Address: address, Err: joinContext(ctx, failures)}
}

// joinContext joins the failures of the attempts with the reason why there are no more of them, if ctx ended.
func joinContext(ctx context.Context, failures []error) error {
	if cause := context.Cause(ctx); cause != nil {
		failures = append(failures, cause)
	}
	return errors.Join(failures...)
}

func konnectivityStage(err error) Stage {
	_, reason := konnectivity.GetDialFailureReason(err)
	switch reason {
	case konnectivitymetrics.DialFailureEndpoint:
		if strings.Contains(err.Error(), noAgentMessage) {
			return StageTunnel
		}
		return StageEndpoint
	case konnectivitymetrics.DialFailureContext, konnectivitymetrics.DialFailureTimeout, konnectivitymetrics.DialFailureDialClosed:
		return StageAgent
	default:
		return StageTunnel
	}
}

// wrap makes a BufferedConn of a connection of konnectivity-client, which has no addresses and no deadlines, and whose
// reader must never pause: after 10 s it closes the tunnel, and until then the server's loop for the agent waits.
func (k *Konnectivity) wrap(inner net.Conn, cluster, address string) net.Conn {
	ready := make(chan struct{}, 1)
	conn := NewBufferedConn(Addr{Name: "tunnel"}, Addr{Name: cluster + "/" + address}, k.receiveBuffer, func() {
		select {
		case ready <- struct{}{}:
		default:
		}
	})
	remoteGone := make(chan struct{})
	k.pumps.Add(2)
	go func() {
		defer k.pumps.Done()
		defer close(remoteGone)
		pumpIn(conn, inner)
	}()
	go func() {
		defer k.pumps.Done()
		pumpOut(conn, inner, ready, remoteGone)
	}()
	return conn
}

func pumpIn(conn *BufferedConn, inner net.Conn) {
	buf := make([]byte, MaxPacket)
	for {
		n, err := inner.Read(buf)
		if n > 0 {
			// A full buffer needs no action here: pumpOut learns of the end and closes inner, which ends this loop.
			_ = conn.Deliver(append([]byte(nil), buf[:n]...))
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			conn.CloseRemote(err)
			return
		}
	}
}

func pumpOut(conn *BufferedConn, inner net.Conn, ready, remoteGone <-chan struct{}) {
	// Close may wait 10 s for an answer that only tells that the connection is gone, which it is for us; the error is the
	// absence of that answer.
	defer func() { _ = inner.Close() }()
	for {
		select {
		case <-ready:
		case <-remoteGone:
			return
		}
		for more := true; more; {
			var p []byte
			var end bool
			p, more, end = conn.TakeOutgoing()
			if len(p) > 0 {
				if _, err := inner.Write(p); err != nil {
					conn.CloseRemote(err)
					return
				}
			}
			if end {
				return
			}
		}
	}
}
