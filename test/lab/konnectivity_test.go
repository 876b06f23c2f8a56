// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/apiserver-network-proxy/konnectivity-client/pkg/client"
)

// TestKonnectivity checks that a firewalled cluster can be reached through a stock server and a
// stock agent, by the cluster's name.
func TestKonnectivity(t *testing.T) {
	ctx, l := newTestLab(t)
	c := startTestCluster(ctx, t, l, ClusterOptions{Name: "edge", Firewalled: true, NoControllerManager: true, NoKwok: true})
	if reason := missingCapability(); reason != nil {
		t.Skipf("the agent resolves the cluster's name with its own hosts file: %v", reason)
	}
	for name, uds := range map[string]bool{"tcp": false, "uds": true} {
		t.Run(name, func(t *testing.T) {
			testKonnectivity(ctx, t, l, c, KonnectivityServerOptions{Name: "server-" + name, UDS: uds})
		})
	}
}

func testKonnectivity(ctx context.Context, t *testing.T, l *Lab, c *Cluster, o KonnectivityServerOptions) {
	server, err := l.StartKonnectivityServer(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile, err := server.AgentFiles("edge")
	if err != nil {
		t.Fatal(err)
	}
	agent, err := l.StartAgent(ctx, AgentOptions{
		Name:        "agent-" + o.Name,
		Cluster:     c,
		ServerPort:  server.AgentPort(),
		CertFile:    certFile,
		KeyFile:     keyFile,
		CAFile:      server.CAFile(),
		Identifiers: []string{"host=edge"},
	})
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := agent.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("the agent was connected after %s", time.Since(start).Round(time.Millisecond))
	tunnel, err := client.CreateSingleUseGrpcTunnel(ctx, target(server), credentialsFor(t, server))
	if err != nil {
		t.Fatal(err)
	}
	config := c.RESTConfig()
	config.Host = "https://edge:" + strconv.Itoa(c.Port())
	config.Dial = tunnel.DialContext
	getVersion(ctx, t, config)

	if err := agent.Pause(); err != nil {
		t.Error(err)
	}
	if err := agent.Stop(); err != nil { // resumes it first
		t.Error(err)
	}
	if err := server.Stop(); err != nil {
		t.Error(err)
	}
}

func target(s *KonnectivityServer) string {
	if s.socket != "" {
		return s.Address()
	}
	return "passthrough:///" + s.Address()
}

func credentialsFor(t *testing.T, s *KonnectivityServer) grpc.DialOption {
	t.Helper()
	if s.socket != "" {
		return grpc.WithTransportCredentials(insecure.NewCredentials())
	}
	pair, err := tls.LoadX509KeyPair(s.ClientCertFile(), s.ClientKeyFile())
	if err != nil {
		t.Fatal(err)
	}
	return grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{pair},
		RootCAs:      s.ca.Pool(),
		ServerName:   loopback,
	}))
}

func getVersion(ctx context.Context, t *testing.T, config *rest.Config) {
	t.Helper()
	httpClient, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := get(ctx, httpClient, config.Host+"/version"); err != nil {
		t.Error(err)
	}
}

// TestRegisterAPIService checks that a hub uses an aggregated API server that runs as a process.
func TestRegisterAPIService(t *testing.T) {
	ctx, l := newTestLab(t)
	hub := startTestCluster(ctx, t, l, ClusterOptions{Name: "hub", NoControllerManager: true, NoKwok: true})
	ca, err := NewCA("aggregated")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.Issue(CertOptions{CN: "aggregated", DNSNames: []string{"cluster-gateway.cluster-gateway-system.svc"}})
	if err != nil {
		t.Fatal(err)
	}
	port := startAggregated(t, pair)
	start := time.Now()
	err = l.RegisterAPIService(ctx, hub, APIServiceOptions{Group: "lab.test", Version: "v1", Port: port, CAPEM: ca.CertPEM()})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the hub found it available after %s", time.Since(start).Round(time.Millisecond))
	wantOutput(t, hub.Kubectl(ctx, "get", "--raw", "/apis/lab.test/v1/things"), "aggregated")
}

func startAggregated(t *testing.T, pair *KeyPair) (port int) {
	t.Helper()
	certificate, err := pair.TLS()
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("aggregated"))
	}))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}}
	server.StartTLS()
	t.Cleanup(server.Close)
	return server.Listener.Addr().(*net.TCPAddr).Port
}

// TestProcessFailure checks the error of a process that does not start.
func TestProcessFailure(t *testing.T) {
	ctx, l := newTestLab(t)
	_, err := l.StartProcess(ctx, ProcessOptions{
		Name:     "broken",
		Path:     "/bin/sh",
		Args:     []string{"-c", "echo why it failed; exit 3"},
		ReadyURL: "http://127.0.0.1:1/",
	})
	if err == nil {
		t.Fatal("a process that ends at once counts as ready")
	}
	for _, want := range []string{"broken", "exit status 3", "broken.log", "why it failed"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not contain %q: %v", want, err)
		}
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(l.Dir()); err != nil {
		t.Errorf("the error names a log that does not exist: %v", err)
	}
	if err := os.RemoveAll(l.Dir()); err != nil {
		t.Error(err)
	}
}
