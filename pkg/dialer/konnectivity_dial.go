// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package dialer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"time"

	"sigs.k8s.io/apiserver-network-proxy/konnectivity-client/proto/client"
)

// Texts with which a konnectivity-server answers a dial in place of the agent. The protocol has no
// code for these answers, so the text has to be compared (apiserver-network-proxy, pkg/server:
// ErrNotFound, errBackendDialTimeout).
const (
	noAgentMessage      = "No agent available"
	agentTimeoutMessage = "timed out waiting for backend dial"
)

// konnectivityDialer dials one address of one cluster.
type konnectivityDialer struct {
	k                *Konnectivity
	cluster, address string
	// lastUsed is when a dial last succeeded, or when the dialer was made, in Unix nanoseconds.
	lastUsed atomic.Int64
}

// dial tries one server after the other while a server, or its path to an agent, is not available:
// an agent may be connected to some of the servers only.
func (d *konnectivityDialer) dial(ctx context.Context, _, requested string, budget *Budget) (net.Conn, error) {
	if requested != d.address {
		return nil, &Error{Cluster: d.cluster, Stage: StageTunnel, Address: requested, Err: ErrAddressNotAllowed}
	}
	if !d.k.begin() {
		return nil, &Error{Cluster: d.cluster, Stage: StageTunnel, Address: requested, Err: net.ErrClosed}
	}
	defer d.k.running.Done()

	servers := d.k.servers
	first := int(d.k.next.Add(1) % uint32(len(servers))) //nolint:gosec // a few servers
	var failures []error
	var stage Stage
	for i := range servers {
		server := servers[(first+i)%len(servers)]
		attempt, cancel := ctx, context.CancelFunc(func() {})
		if i < len(servers)-1 {
			attempt, cancel = context.WithTimeout(ctx, d.k.cfg.attemptTimeout)
		}
		conn, at, err := d.dialOver(attempt, server, budget)
		cancel()
		if err == nil {
			return conn, nil
		}
		// The failure at the latest stage tells the user most.
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

// dialOver dials through one server. On success the stream outlives ctx; on failure it returns the
// stage.
func (d *konnectivityDialer) dialOver(ctx context.Context, server *konnectivityServer, budget *Budget) (net.Conn, Stage, error) {
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
	d.lastUsed.Store(time.Now().UnixNano())
	return d.newConn(stream, cancel, id, server.name, budget), "", nil
}

// request opens a stream, sends the dial request and waits for the answer. It returns the
// connection ID, or an error and its stage.
func (d *konnectivityDialer) request(ctx context.Context, server *konnectivityServer) (client.ProxyService_ProxyClient, int64, Stage, error) {
	stream, err := client.NewProxyServiceClient(server.conn).Proxy(ctx)
	if err != nil {
		return nil, 0, StageTunnel, err
	}
	random := rand.Int64N(1<<62) + 1
	// If Send fails with io.EOF, Recv returns the actual error.
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
			return nil, 0, StageAgent, err // the server accepted the dial, so the agent did not answer
		case err != nil:
			return nil, 0, StageTunnel, err
		}
		switch r := p.GetDialResponse(); {
		case p.GetType() == client.PacketType_DIAL_CLS && p.GetCloseDial().GetRandom() == random:
			return nil, 0, StageAgent, errors.New("the agent gave up the dial")
		case p.GetType() != client.PacketType_DIAL_RSP || r.GetRandom() != random:
			// Not an answer to this dial.
		case r.GetError() == noAgentMessage:
			return nil, 0, StageTunnel, &NoAgentError{External: true, Since: time.Unix(0, d.lastUsed.Load())}
		case r.GetError() == agentTimeoutMessage:
			return nil, 0, StageAgent, errors.New("the agent did not answer the konnectivity-server in time")
		case r.GetError() != "":
			return nil, 0, StageEndpoint, fmt.Errorf("the agent cannot dial it: %.300s", r.GetError())
		case r.GetConnectID() == 0:
			return nil, 0, StageAgent, errors.New("the answer to the dial has no connection ID")
		default:
			return stream, r.GetConnectID(), "", nil
		}
	}
}
