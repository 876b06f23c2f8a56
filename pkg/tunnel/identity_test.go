// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"sigs.k8s.io/apiserver-network-proxy/konnectivity-client/proto/client"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/dialer"
	"github.com/oam-dev/cluster-gateway/pkg/dialer/dialertest"
)

func TestClusterOf(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name          string
		organizations []string
		commonName    string
		want, fault   string
	}{
		{"agent", []string{v1alpha1.AgentOrganization}, "east", "east", ""},
		{"dotted", []string{v1alpha1.AgentOrganization}, "east.example.org", "east.example.org", ""},
		{"one of several organizations", []string{"acme", v1alpha1.AgentOrganization}, "east", "east", ""},
		{"no organization", nil, "east", "", "organization"},
		{"another organization", []string{"system:masters"}, "east", "", "organization"},
		{"organization with a suffix", []string{v1alpha1.AgentOrganization + ":x"}, "east", "", "organization"},
		{"no name", []string{v1alpha1.AgentOrganization}, "", "", "common name"},
		{"path", []string{v1alpha1.AgentOrganization}, "../east", "", "common name"},
		{"upper case", []string{v1alpha1.AgentOrganization}, "East", "", "common name"},
		{"line break", []string{v1alpha1.AgentOrganization}, "east\nwest", "", "common name"},
		{"too long", []string{v1alpha1.AgentOrganization}, strings.Repeat("a", 254), "", "common name"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := ClusterOf(&x509.Certificate{Subject: pkix.Name{CommonName: test.commonName, Organization: test.organizations}})
			if got != test.want || (err == nil) != (test.fault == "") {
				t.Errorf("%q, %v; want %q", got, err, test.want)
			}
			if err != nil && !strings.Contains(err.Error(), test.fault) {
				t.Errorf("%v; want it to name the %s", err, test.fault)
			}
		})
	}
}

func TestRefusedAgents(t *testing.T) {
	t.Parallel()
	g := startGateway(t, nil)
	unknown := dialertest.NewCA(t, "unknown")
	for _, test := range []struct {
		name string
		cfg  *tls.Config
		want string
		code codes.Code
	}{
		{"wrong organization", g.ca.ClientTLS(g.ca.Client(t, "east", "system:masters")), v1alpha1.AgentOrganization, codes.PermissionDenied},
		{"invalid name", g.ca.ClientTLS(g.ca.Client(t, "NOT A NAME", v1alpha1.AgentOrganization)), "common name", codes.PermissionDenied},
		{"serving certificate", g.ca.ClientTLS(g.ca.Server(t)), "", codes.Unavailable},
		{"no certificate", g.ca.ClientTLS(), "certificate required", codes.Unavailable},
		{"unknown CA", g.ca.ClientTLS(unknown.Client(t, "east", v1alpha1.AgentOrganization)), "", codes.Unavailable},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := g.tryConnect(t, test.cfg, "a")
			if err == nil {
				t.Fatal("the server accepted it")
			}
			// With TLS 1.3, the client may see a refused handshake as the mere end of the connection.
			if status.Code(err) != test.code || test.code == codes.PermissionDenied && !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v; want %s with %q", err, test.code, test.want)
			}
			if n, _ := g.Agents("east"); n != 0 {
				t.Errorf("%d agents are in the table", n)
			}
		})
	}
}

// TestRevokedAgents shows that agents whose certificates are not accepted any more lose their
// streams at once, parked ones included, and cannot come back. Others notice nothing.
func TestRevokedAgents(t *testing.T) {
	t.Parallel()
	var revoked atomic.Bool
	why := errors.New("it is revoked")
	g := startGateway(t, func(cfg *Config) {
		cfg.checkInterval = time.Hour
		cfg.Accept = func(cluster string, _ *x509.Certificate) error {
			if cluster == "east" && revoked.Load() {
				return why
			}
			return nil
		}
	})
	serving, other := g.connect(t, "east", "a"), g.connect(t, "west", "b")
	parked := g.park(t, "east", "a")
	revoked.Store(true)
	g.Recheck("west")
	g.Recheck("east")
	for _, a := range []*fakeAgent{serving, parked} {
		if err := a.end(); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), why.Error()) {
			t.Errorf("the stream ended with %v", err)
		}
	}
	dialertest.Eventually(t, "no agent of east", func() bool { n, _ := g.Agents("east"); return n == 0 })
	if _, err := g.tryConnect(t, g.tls(t, "east"), "a"); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), why.Error()) {
		t.Errorf("the agent came back: %v", err)
	}
	if err := g.RecentRefusal("east"); err == nil || !strings.Contains(err.Error(), why.Error()) {
		t.Errorf("the refusal is %v", err)
	}
	if n, _ := g.Agents("west"); n != 1 || other.stream.Context().Err() != nil {
		t.Errorf("west has %d agents", n)
	}
	revoked.Store(false)
	g.connect(t, "east", "a")
}

// An agent with west's certificate that claims east's ID and identifiers gets the dials for west
// and nothing else.
func TestCertificateDecides(t *testing.T) {
	t.Parallel()
	g := startGateway(t, nil)
	eastDials, westDials := make(chan string, 10), make(chan string, 10)
	g.connect(t, "west", "east").goEcho(westDials)

	_, err := g.dialer(t, "east", dialer.ForRequests).DialContext(t.Context(), "tcp", apiServer)
	var none *dialer.NoAgentError
	if !errors.As(err, &none) || !none.LastSeen.IsZero() {
		t.Fatalf("east was reached through west's agent: %v", err)
	}
	g.connect(t, "east", "east").goEcho(eastDials)
	for range 5 {
		mustDial(t, g.dialer(t, "east", dialer.ForRequests))
		mustDial(t, g.dialer(t, "east", dialer.ForUpgrades))
	}
	if len(westDials) != 0 || len(eastDials) != 10 {
		t.Errorf("west's agent got %d dials and east's %d, want none and 10", len(westDials), len(eastDials))
	}
	mustDial(t, g.dialer(t, "west", dialer.ForRequests))
	if len(westDials) != 1 {
		t.Errorf("west's agent got %d of its own dials, want 1", len(westDials))
	}
}

// Packets of west's agent with the IDs of east's dials and connections have no effect on east.
func TestIDsOfAnotherCluster(t *testing.T) {
	t.Parallel()
	g := startGateway(t, nil)
	east, west := g.connect(t, "east", "a"), g.connect(t, "west", "b")

	pending := goDial(t.Context(), g.dialer(t, "east", dialer.ForRequests))
	random := east.expect(client.PacketType_DIAL_REQ).GetDialRequest().GetRandom()
	west.send(
		dialResponse(random, 1, ""), dialResponse(random, 0, "no"),
		&client.Packet{Type: client.PacketType_DIAL_CLS, Payload: &client.Packet_CloseDial{CloseDial: &client.CloseDial{Random: random}}},
	)
	west.expect(client.PacketType_CLOSE_REQ) // for the connection that west claims: all packets above have been handled
	east.send(dialResponse(random, 1, ""))
	got := dialertest.Within(t, pending, "the dial")
	if got.err != nil {
		t.Fatal(got.err)
	}
	west.send(data(1, []byte("forged")), closeResponse(1, "forged"), data(2, nil))
	west.expect(client.PacketType_CLOSE_REQ)
	west.expect(client.PacketType_CLOSE_REQ)
	east.send(data(1, []byte("true")), closeResponse(1, ""))
	if p, err := io.ReadAll(got.conn); err != nil || string(p) != "true" {
		t.Errorf("east's connection read %q, %v; want what east's agent sent", p, err)
	}
}

func TestOnlyTheRegisteredAddress(t *testing.T) {
	t.Parallel()
	g := startGateway(t, nil)
	dials := make(chan string, 10)
	g.connect(t, "east", "a").goEcho(dials)
	d := g.dialer(t, "east", dialer.ForRequests)
	for _, address := range []string{"10.0.0.1:22", "10.0.0.2:6443", "169.254.169.254:80", "", "10.0.0.1:6443 ", "10.0.0.1:06443"} {
		if _, err := d.DialContext(t.Context(), "tcp", address); !errors.Is(err, dialer.ErrAddressNotAllowed) {
			t.Errorf("%q: %v, want ErrAddressNotAllowed", address, err)
		}
	}
	mustDial(t, d)
	if len(dials) != 1 || <-dials != apiServer {
		t.Error("an address that is not registered reached the agent")
	}
}

func TestServeRequiresClientCertificates(t *testing.T) {
	t.Parallel()
	ca := dialertest.NewCA(t, "ca")
	for name, change := range map[string]func(*tls.Config) *tls.Config{
		"none":             func(*tls.Config) *tls.Config { return nil },
		"not required":     func(c *tls.Config) *tls.Config { c.ClientAuth = tls.VerifyClientCertIfGiven; return c },
		"not verified":     func(c *tls.Config) *tls.Config { c.ClientAuth = tls.RequireAnyClientCert; return c },
		"the system's CAs": func(c *tls.Config) *tls.Config { c.ClientCAs = nil; return c },
	} {
		t.Run(name, func(t *testing.T) {
			lis := dialertest.Listen(t)
			if err := New(Config{TLS: change(ca.ServerTLS(t))}).Serve(t.Context(), lis); err == nil {
				t.Error("the server serves")
			}
			if _, err := lis.Accept(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("the listener is still open: %v", err)
			}
		})
	}
}

// Each handshake uses the current serving certificate and the current CA of agents.
func TestReload(t *testing.T) {
	t.Parallel()
	var current atomic.Pointer[tls.Config]
	g := startGateway(t, func(c *Config) {
		current.Store(c.TLS)
		c.TLS = &tls.Config{MinVersion: tls.VersionTLS12, ClientAuth: tls.RequireAndVerifyClientCert,
			GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return current.Load(), nil }}
	})
	before := g.connect(t, "east", "before").goEcho(nil)
	_ = before
	d := g.dialer(t, "east", dialer.ForRequests)
	c := mustDial(t, d)

	next := dialertest.NewCA(t, "next")
	current.Store(next.ServerTLS(t))
	if _, err := g.tryConnect(t, g.tls(t, "east"), "old CA"); err == nil {
		t.Error("the server accepted an agent of the old CA")
	}
	nextTLS := next.ClientTLS(next.Client(t, "east", v1alpha1.AgentOrganization))
	after, err := g.tryConnect(t, nextTLS, "after")
	if err != nil {
		t.Fatal(err)
	}
	after.goEcho(nil)
	mustEcho(t, c, "the old stream works until it is verified again")

	g.Reverify(x509.VerifyOptions{Roots: next.Pool()})
	if err := dialertest.Within(t, readError(c), "the connection of an agent whose CA was removed"); err == nil || !strings.Contains(err.Error(), "no longer accepted") {
		t.Errorf("Read: %v; want the reason that the certificate is no longer accepted", err)
	}
	dialertest.Eventually(t, "the table", func() bool { return g.streams("east", "before") == 0 })
	mustEcho(t, mustDial(t, d), "through the agent of the new CA")

	// A reloaded configuration that does not verify agents admits none.
	open := next.ServerTLS(t)
	open.ClientAuth = tls.NoClientCert
	current.Store(open)
	if _, err := g.tryConnect(t, nextTLS, "unverified"); err == nil {
		t.Error("the server accepted an agent without verification")
	}
}

// The stream of an agent whose certificate has expired ends after a grace period.
func TestExpiredCertificate(t *testing.T) {
	t.Parallel()
	g := startGateway(t, nil)
	g.connect(t, "east", "forgotten").goEcho(nil)
	c := mustDial(t, g.dialer(t, "east", dialer.ForRequests))
	end := g.AgentCertificate("east").NotAfter
	g.endFaulty(end.Add(expiryGrace - time.Minute))
	g.Reverify(x509.VerifyOptions{Roots: g.ca.Pool(), CurrentTime: end.Add(time.Minute)})
	mustEcho(t, c, "an agent that has been replaced drains")
	g.endFaulty(end.Add(expiryGrace + time.Minute))
	if err := dialertest.Within(t, readError(c), "the connection of an agent whose certificate has expired"); err == nil || !strings.Contains(err.Error(), "its certificate expired at") {
		t.Errorf("Read: %v; want the reason that its certificate has expired", err)
	}
	dialertest.Eventually(t, "the table", func() bool { return g.streams("east", "forgotten") == 0 })
}

func TestShutdownEndsEverything(t *testing.T) {
	t.Parallel()
	g := startGateway(t, nil)
	a := g.connect(t, "east", "a")
	d := g.dialer(t, "east", dialer.ForRequests)
	open := goDial(t.Context(), d)
	a.accept(1)
	c := dialertest.Within(t, open, "the dial").conn
	pending := goDial(context.Background(), d)
	a.expect(client.PacketType_DIAL_REQ)
	g.stop()
	var de *dialer.Error
	if got := dialertest.Within(t, pending, "the dial"); !errors.As(got.err, &de) || de.Stage != dialer.StageAgent {
		t.Errorf("the dial under way: %v", got.err)
	}
	if err := dialertest.Within(t, readError(c), "Read"); err == nil || !strings.Contains(err.Error(), "shutting down") {
		t.Errorf("Read: %v; want the reason that the gateway is shutting down", err)
	}
	var none *dialer.NoAgentError
	if _, err := d.DialContext(t.Context(), "tcp", apiServer); !errors.As(err, &none) || none.LastSeen.IsZero() {
		t.Errorf("a dial afterwards: %v; want NoAgentError with the time", err)
	}
}
