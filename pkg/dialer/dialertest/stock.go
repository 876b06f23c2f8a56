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
	// AgentAddress is the address that agents connect to.
	AgentAddress string
	// AgentConnected receives a value each time that an agent becomes available for dials.
	AgentConnected <-chan struct{}
	// Stop ends the server. The test calls it at its end at the latest.
	Stop func()
}

// StartServer starts the real konnectivity-server in this process, in the way of its own command.
// It accepts agents on a port of its own with mutual TLS, and the gateway on each listener of
// frontends, with that listener's options. It closes the listeners.
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

// announcedStream reports when the server has put the agent into its table: the server reads from
// the stream only after that.
type announcedStream struct {
	grpc.ServerStream
	once      sync.Once
	connected chan<- struct{}
}

func (s *announcedStream) RecvMsg(m any) error {
	s.once.Do(func() { s.connected <- struct{}{} })
	return s.ServerStream.RecvMsg(m)
}
