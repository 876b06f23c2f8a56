// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"k8s.io/client-go/kubernetes/fake"
	"sigs.k8s.io/apiserver-network-proxy/proto/agent"
	"sigs.k8s.io/apiserver-network-proxy/proto/header"

	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/pki"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

// storedClusters are the clusters of a Store.
type storedClusters struct {
	all    map[string]*cluster.Cluster
	synced bool
}

func (c *storedClusters) Get(name string) (*cluster.Cluster, bool) {
	found, ok := c.all[name]
	return found, ok
}
func (c *storedClusters) HasSynced() bool { return c.synced }

func TestAgentAcceptance(t *testing.T) {
	t.Parallel()
	authority, err := pki.NewAuthority(0)
	if err != nil {
		t.Fatal(err)
	}
	_, cert, err := registration.IssueAgentPair(authority, "edge", 24*time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	issued := pki.IssuedAt(cert)
	later := func(d time.Duration) func() time.Time { return func() time.Time { return issued.Add(d) } }
	for _, test := range []struct {
		name string
		// since is that of the registered cluster, or nil.
		since *time.Time
		// removed is when a cluster of the name was removed, after the certificate was issued.
		removed *time.Duration
		now     time.Duration
		loading bool
		want    error
	}{
		{"registered", &time.Time{}, nil, 100 * time.Hour, false, nil},
		{"registered before", new(issued.Add(-time.Hour)), nil, 0, false, nil},
		{"revoked", new(issued.Add(time.Hour)), nil, 0, false, registration.ErrRevoked},
		{"a registration is under way", nil, nil, time.Minute, false, nil},
		{"never registered", nil, nil, 61 * time.Minute, false, errNotRegistered},
		{"removed", nil, new(time.Minute), 2 * time.Minute, false, errNotRegistered},
		{"removed before", nil, new(-time.Minute), 2 * time.Minute, false, nil},
		{"the clusters are not known yet", nil, nil, 100 * time.Hour, true, nil},
	} {
		clusters := &storedClusters{all: map[string]*cluster.Cluster{}, synced: !test.loading}
		a := &agentAcceptance{clusters: clusters, removed: map[string]time.Time{}}
		if test.removed != nil {
			a.now = later(*test.removed)
			a.changed("edge", nil)
		}
		a.now = later(test.now)
		if test.since != nil {
			clusters.all["edge"] = &cluster.Cluster{Name: "edge", AgentCertificatesSince: *test.since}
		}
		if err := a.accept("edge", cert); !errors.Is(err, test.want) || (err == nil) != (test.want == nil) {
			t.Errorf("%s: %v, want %v", test.name, err, test.want)
		}
	}
	t.Run("memory", func(t *testing.T) {
		a := &agentAcceptance{clusters: &storedClusters{}, removed: map[string]time.Time{}}
		for i, name := range []string{"a", "b", "c"} {
			a.now = later(time.Duration(i) * 2 * registrationTime)
			a.changed(name, nil)
		}
		if len(a.removed) != 1 {
			t.Errorf("it remembers %v", a.removed)
		}
	})
}

// The metric counts the agents that still have a certificate from the tunnel's CA, as those of
// earlier versions. It does not count the others.
func TestAgentsWithTunnelCACertificate(t *testing.T) {
	t.Parallel()
	const namespace = "clusters"
	hub := fake.NewClientset()
	earlier := pki.NewKeeper(pki.KeeperConfig{Client: hub, Namespace: namespace, Hosts: []string{"localhost"}})
	if err := earlier.LoadOrCreate(t.Context()); err != nil {
		t.Fatal(err)
	}
	accepted := &agentAcceptance{clusters: &storedClusters{}, now: time.Now, removed: map[string]time.Time{}}
	e, err := newEmbeddedTunnel(&EmbeddedTunnelConfig{BindAddress: net.IPv4(127, 0, 0, 1), MaxAgents: 10, Hosts: []string{"localhost"}},
		HubConfig{Client: hub, SecretNamespace: namespace}, accepted, nil, otherReplicas{})
	if err != nil {
		t.Fatal(err)
	}
	keeper := e.certificates.(keeperCertificates).keeper
	if err := keeper.LoadOrCreate(t.Context()); err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { served <- e.server.Serve(ctx, e.listener) }()
	defer func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	for _, connect := range []struct {
		issuer *pki.Authority
		want   int
	}{{keeper.Authority(), 0}, {earlier.Authority(), 1}, {keeper.Authority(), 1}, {earlier.Authority(), 2}} {
		defer connectAgent(t, e.listener.Addr().String(), connect.issuer)()
		if n := e.withTunnelCACertificate(); n != connect.want {
			t.Errorf("%d agents have a certificate from the tunnel's CA, want %d", n, connect.want)
		}
	}
}

// connectAgent connects an agent of a cluster of its own, and returns when it is accepted.
func connectAgent(t *testing.T, address string, issuer *pki.Authority) (disconnect func()) {
	t.Helper()
	certificate, key, err := issuer.IssueAgent(strings.ToLower(rand.Text()), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
		RootCAs: issuer.Pool(), Certificates: []tls.Certificate{pair}, ServerName: "localhost", MinVersion: tls.VersionTLS13,
	})))
	if err != nil {
		t.Fatal(err)
	}
	stream, err := agent.NewAgentServiceClient(conn).Connect(metadata.AppendToOutgoingContext(t.Context(), header.AgentID, "a"))
	if err == nil {
		_, err = stream.Header()
	}
	if err != nil {
		t.Fatal(err)
	}
	return func() { _ = conn.Close() } // the only time
}
