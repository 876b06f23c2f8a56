// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/keepalive"
	"sigs.k8s.io/apiserver-network-proxy/proto/agent"

	"github.com/oam-dev/cluster-gateway/pkg/dialer"
)

// maxPacket is the largest packet that is accepted, in bytes. The stock agent sends 4 KiB at a
// time.
const maxPacket = 1 << 20

// maxHeader is the largest header of a stream that is accepted, in bytes. It is kept as long as the
// stream. The stock agent's is below 1 KiB, and an enrolling one has a token. gRPC's default is 16
// MiB.
const maxHeader = 64 << 10

// receiveWindow is how many bytes an agent may send on a stream before they are read. With a
// round-trip time of 50 ms, this limits a stream to 80 MiB/s.
const receiveWindow = 4 << 20

// Server is the embedded Konnectivity server. It is safe for concurrent use. Use New.
type Server struct {
	agent.UnimplementedAgentServiceServer
	cfg     Config
	started time.Time

	connections connections
	handshakes  handshakes
	budgets     *dialer.Budgets
	// refusals are what MaxAgents has refused.
	refusals refusals
	// refusalLog logs all refusals.
	refusalLog refusalLog

	mu       sync.RWMutex
	clusters map[string]*clusterAgents
	// enrolling holds the streams that enroll, by the name in their invitation: one for each name.
	enrolling map[string]*enrollment
	closed    bool
	// leaving is closed by leave: see Leave.
	leaving chan struct{}
	leave   func()
	// streamCount numbers the streams, for their server IDs.
	streamCount int64
	// running counts the goroutines of sessions. Add is called only under mu and while not closed.
	running sync.WaitGroup

	// The subscribers do not change after Serve has started.
	onAgentsChange  []func(cluster string, agents int)
	onStreamsChange []func(cluster string, streams Streams)
	onAgentLeaving  []func(cluster string)
	onRefusal       []func(cluster string)
	onUpgrade       []func(cluster string, own bool)
	onFailing       []func(cluster, agent string, failing bool)
	// reporting orders the calls of onAgentsChange and onStreamsChange, which are made without mu
	// held. reported and reportedStreams have the last count of each cluster.
	reporting       sync.Mutex
	reported        map[string]int
	reportedStreams map[string]Streams
}

// New returns a Server. Serve starts it.
func New(cfg Config) *Server {
	cfg = cfg.withDefaults()
	leaving := make(chan struct{})
	return &Server{
		leaving: leaving, leave: sync.OnceFunc(func() { close(leaving) }),
		cfg: cfg, started: time.Now(), budgets: dialer.NewBudgets(cfg.ReceiveBuffer, cfg.Memory),
		connections: connections{limit: 8 * cfg.MaxAgents}, handshakes: handshakes{limit: cfg.maxHandshakes},
		clusters: map[string]*clusterAgents{}, enrolling: map[string]*enrollment{}, reported: map[string]int{}, reportedStreams: map[string]Streams{},
	}
}

// Serve accepts agents on lis until ctx ends. Then it ends all their streams, closes lis, and waits
// for everything that it has started. It must be called once only. It returns an error if the TLS
// configuration does not verify agents, or if accepting fails.
func (s *Server) Serve(ctx context.Context, lis net.Listener) error {
	g, err := s.grpcServer()
	if err != nil {
		return errors.Join(err, lis.Close())
	}
	served := make(chan error, 1)
	go func() { served <- g.Serve(lis) }()
	ticker := time.NewTicker(s.cfg.checkInterval)
	defer ticker.Stop()
	for {
		select {
		case now := <-ticker.C:
			s.endFaulty(now)
			s.retireIdle(now)
			s.reportFailing(now)
			s.reportLeaving()
			s.connections.removeClosed()
			s.refusals.removeOld(time.Now())
			s.refusalLog.flush(s.cfg.Logger, time.Now())
			continue
		case err = <-served:
			s.shutDown()
			g.Stop()
		case <-ctx.Done():
			s.shutDown()
			g.Stop()
			err = <-served
		}
		s.running.Wait()
		return err
	}
}

func (s *Server) grpcServer() (*grpc.Server, error) {
	serving, err := servingConfig(s.cfg.TLS)
	if err != nil {
		return nil, err
	}
	g := grpc.NewServer(
		grpc.Creds(boundedCredentials{keepConnCredentials{credentials.NewTLS(serving)}, s}),
		// An agent always has a stream. A connection without one is of no use.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveTime, Timeout: keepaliveTimeout, MaxConnectionIdle: s.cfg.maxIdle}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		experimental.BufferPool(&buffers{}),
		grpc.ForceServerCodecV2(newPacketCodec()),
		// This buffer is for frame headers and small frames; the content of a larger frame is read
		// past it. Each connection has one, and each agent has at least two connections. TLS is
		// below it, so a small one costs no system calls.
		grpc.ReadBufferSize(512),
		// gRPC's own windows grow up to 16 MiB. What a stream has received and nobody reads counts
		// against no budget.
		grpc.StaticStreamWindowSize(receiveWindow),
		grpc.StaticConnWindowSize(receiveWindow),
		grpc.MaxRecvMsgSize(maxPacket),
		grpc.MaxHeaderListSize(maxHeader),
		grpc.MaxConcurrentStreams(4),
		grpc.ConnectionTimeout(20*time.Second),
		grpc.WaitForHandlers(true),
	)
	agent.RegisterAgentServiceServer(g, s)
	return g, nil
}

// shutDown ends all sessions and refuses new ones.
func (s *Server) shutDown() {
	s.mu.Lock()
	s.closed = true
	all := s.sessionsLocked()
	s.mu.Unlock()
	for _, se := range all {
		se.end(fmt.Errorf("%w: the gateway is shutting down", errAgentGone))
	}
}

// sessionsOfLocked returns the sessions of a cluster, also those that are parked.
func (s *Server) sessionsOfLocked(cluster string) []*session {
	c := s.clusters[cluster]
	if c == nil {
		return nil
	}
	all := slices.Clone(c.sessions)
	for _, a := range c.agents {
		all = append(all, a.parked...)
	}
	return all
}

// sessionsLocked returns all sessions, also those that are parked or enroll.
func (s *Server) sessionsLocked() []*session {
	var all []*session
	for name := range s.clusters {
		all = append(all, s.sessionsOfLocked(name)...)
	}
	for _, e := range s.enrolling {
		all = append(all, e.session)
	}
	return all
}
