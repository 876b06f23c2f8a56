// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package dialertest

import (
	"crypto/tls"
	"net"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"sigs.k8s.io/apiserver-network-proxy/konnectivity-client/proto/client"
	stockserver "sigs.k8s.io/apiserver-network-proxy/pkg/server"
	"sigs.k8s.io/apiserver-network-proxy/pkg/server/proxystrategies"
	"sigs.k8s.io/apiserver-network-proxy/proto/agent"
)

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
