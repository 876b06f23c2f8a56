// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package dialertest

import (
	"crypto/tls"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"sigs.k8s.io/apiserver-network-proxy/konnectivity-client/proto/client"
	stockagent "sigs.k8s.io/apiserver-network-proxy/pkg/agent"
	stockserver "sigs.k8s.io/apiserver-network-proxy/pkg/server"
	"sigs.k8s.io/apiserver-network-proxy/pkg/server/proxystrategies"
	"sigs.k8s.io/apiserver-network-proxy/proto/agent"
)

// AgentConfig says how a stock agent is started.
type AgentConfig struct {
	// Address is the server's, TLS what the agent presents to it and trusts.
	Address string
	TLS     *tls.Config
	// ID and Identifiers are what the agent claims.
	ID, Identifiers string
}

// Agent is a running stock agent.
type Agent struct {
	drain, stop         chan struct{}
	drainOnce, stopOnce sync.Once
}

// StartAgent starts the real Konnectivity agent in this process. It is stopped at the end of the test at the latest.
func StartAgent(t testing.TB, cfg AgentConfig) *Agent {
	t.Helper()
	a := &Agent{drain: make(chan struct{}), stop: make(chan struct{})}
	set := (&stockagent.ClientSetConfig{
		Address: cfg.Address, AgentID: cfg.ID, AgentIdentifiers: cfg.Identifiers,
		SyncInterval: 20 * time.Millisecond, SyncIntervalCap: 100 * time.Millisecond, ProbeInterval: 50 * time.Millisecond,
		DialOptions:    []grpc.DialOption{grpc.WithTransportCredentials(credentials.NewTLS(cfg.TLS))},
		XfrChannelSize: 150,
	}).NewAgentClientSet(a.drain, a.stop)
	set.SetServerCounter(stockagent.NewAggregateServerCounter(nil, stockagent.NewResponseBasedCounter(set), ""))
	set.Serve()
	t.Cleanup(a.Stop)
	return a
}

// Stop ends the agent with all its connections. It may be called more than once.
func (a *Agent) Stop() { a.stopOnce.Do(func() { close(a.stop) }) }

// Drain makes the agent say that it is about to go.
func (a *Agent) Drain() { a.drainOnce.Do(func() { close(a.drain) }) }

// StockServer is a running stock konnectivity-server.
type StockServer struct {
	// AgentAddress is where agents connect.
	AgentAddress string
	// AgentConnected gets a value for each agent that dials can now be sent to.
	AgentConnected <-chan struct{}
	// Stop ends the server. It is called at the end of the test.
	Stop func()
}

// StartServer starts the real konnectivity-server in this process, as its own command does: agents on a port with mutual TLS, the
// gateway on each of frontends, which it owns, with its options.
func StartServer(t testing.TB, agents *tls.Config, frontends map[net.Listener][]grpc.ServerOption) *StockServer {
	t.Helper()
	proxy := stockserver.NewProxyServer("stock", []proxystrategies.ProxyStrategy{proxystrategies.ProxyStrategyDestHost}, 1,
		&stockserver.AgentTokenAuthenticationOptions{}, 150)
	connected := make(chan struct{}, 100)
	var servers []*grpc.Server
	var running sync.WaitGroup
	serve := func(s *grpc.Server, lis net.Listener) {
		servers = append(servers, s)
		running.Add(1)
		go func() {
			defer running.Done()
			if err := s.Serve(lis); err != nil {
				t.Errorf("stock server: %v", err)
			}
		}()
	}
	agentServer := grpc.NewServer(grpc.Creds(credentials.NewTLS(agents)),
		grpc.StreamInterceptor(func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
			return handler(srv, &announcedStream{ServerStream: ss, connected: connected})
		}))
	agent.RegisterAgentServiceServer(agentServer, proxy)
	lis := Listen(t)
	serve(agentServer, lis)
	for frontend, opts := range frontends {
		s := grpc.NewServer(opts...)
		client.RegisterProxyServiceServer(s, proxy)
		serve(s, frontend)
	}
	var once sync.Once
	stop := func() {
		once.Do(func() {
			for _, s := range servers {
				s.Stop()
			}
			running.Wait()
		})
	}
	t.Cleanup(stop)
	return &StockServer{AgentAddress: lis.Addr().String(), AgentConnected: connected, Stop: stop}
}

// announcedStream tells when the server has put the agent into its table: it reads from the stream only after that.
type announcedStream struct {
	grpc.ServerStream
	once      sync.Once
	connected chan<- struct{}
}

func (s *announcedStream) RecvMsg(m any) error {
	s.once.Do(func() { s.connected <- struct{}{} })
	return s.ServerStream.RecvMsg(m)
}

// Listen listens on a free port of localhost. The listener is closed at the end of the test.
func Listen(t testing.TB) net.Listener {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = lis.Close() }) // whoever serves it may have closed it
	return lis
}
