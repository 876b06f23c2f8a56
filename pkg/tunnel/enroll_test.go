// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"sigs.k8s.io/apiserver-network-proxy/konnectivity-client/proto/client"
	"sigs.k8s.io/apiserver-network-proxy/proto/agent"
	"sigs.k8s.io/apiserver-network-proxy/proto/header"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/dialer"
	"github.com/oam-dev/cluster-gateway/pkg/dialer/dialertest"
)

// enrollerFunc is an Enroller. An invitation never serves as an agent's certificate. An invitation
// never serves as an agent's certificate.
type enrollerFunc func(ctx context.Context, invited Invited) error

func (f enrollerFunc) Enroll(ctx context.Context, invited Invited) (bool, error) {
	return false, f(ctx, invited)
}

func (enrollerFunc) Serves(context.Context, Invited) error {
	return errors.New("the invitation does not serve")
}

// invitedTLS is the configuration of an invited cluster's agent: it presents the invitation, and
// another certificate in its chain.
func (g *gateway) invitedTLS(t *testing.T, name string) *tls.Config {
	t.Helper()
	pair := g.ca.Client(t, name, v1alpha1.InvitationOrganization)
	other := dialertest.NewCA(t, "the cluster's CA").Client(t, "any")
	pair.Certificate = append(pair.Certificate, other.Certificate[0])
	return g.ca.ClientTLS(pair)
}

// connectInvited opens a stream with a token, and does not wait for the header.
func (g *gateway) connectInvited(t *testing.T, cfg *tls.Config, token string) *fakeAgent {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+g.address, grpc.WithTransportCredentials(credentials.NewTLS(cfg)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(context.Background(), header.AgentID, "a",
		header.AuthenticationTokenContextKey, header.AuthenticationTokenContextSchemePrefix+token))
	a := &fakeAgent{t: t, conn: conn, cancel: cancel}
	t.Cleanup(a.kill)
	if a.stream, err = agent.NewAgentServiceClient(conn).Connect(ctx); err != nil {
		t.Fatal(err)
	}
	return a
}

// TestInvited shows what the Enroller gets, that its connections reach the right address, and how
// the stream ends.
func TestInvited(t *testing.T) {
	t.Parallel()
	for _, outcome := range []error{nil, errors.New("the cluster is not wanted")} {
		seen := make(chan Invited, 1)
		echoed := make(chan error, 1)
		g := startGateway(t, func(c *Config) {
			c.refusalPause = 10 * time.Millisecond
			c.Enroller = enrollerFunc(func(ctx context.Context, invited Invited) error {
				seen <- invited
				conn, err := invited.Dial(ctx, apiServer)
				if err == nil {
					_, err = io.WriteString(conn, "hello")
					if err == nil {
						_, err = io.ReadFull(conn, make([]byte, 5))
					}
				}
				echoed <- err
				return outcome
			})
		})
		a := g.connectInvited(t, g.invitedTLS(t, "east"), "secret")
		dials, ended := make(chan string, 1), make(chan error, 1)
		go func() {
			a.echo(dials)
			ended <- a.end()
		}()
		invited := dialertest.Within(t, seen, "the enroller")
		if invited.Name != "east" || invited.Token != "secret" || len(invited.Chain) != 1 || invited.Certificate.Subject.CommonName != "east" ||
			invited.Chain[0].Subject.CommonName != "any" {
			t.Errorf("the enroller got %q, a token of %d bytes and %d further certificates", invited.Name, len(invited.Token), len(invited.Chain))
		}
		if err := dialertest.Within(t, echoed, "the enroller's connection"); err != nil {
			t.Error(err)
		}
		if address := dialertest.Within(t, dials, "the dial"); address != apiServer {
			t.Errorf("the agent was asked to dial %s", address)
		}
		err := dialertest.Within(t, ended, "the end of the stream")
		if outcome == nil && !errors.Is(err, io.EOF) {
			t.Errorf("the stream ended with %v", err)
		}
		if outcome != nil && (status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), outcome.Error())) {
			t.Errorf("the stream ended with %v; want %v", err, outcome)
		}
		dialertest.Eventually(t, "the end of the enrollment", func() bool {
			g.mu.Lock()
			defer g.mu.Unlock()
			return len(g.enrolling) == 0
		})
		g.stop()
	}
}

// TestInvitedIsNotAnAgent shows that no request uses the stream of an invited cluster, whatever the
// peer sends.
func TestInvitedIsNotAnAgent(t *testing.T) {
	t.Parallel()
	entered, release := make(chan struct{}, 1), make(chan struct{})
	g := startGateway(t, func(c *Config) {
		c.Enroller = enrollerFunc(func(ctx context.Context, invited Invited) error {
			if _, err := invited.Dial(ctx, apiServer); err == nil {
				t.Error("there is a connection, but the agent refused the dial")
			}
			entered <- struct{}{}
			select {
			case <-release:
			case <-ctx.Done():
			}
			return nil
		})
	})
	a := g.connectInvited(t, g.invitedTLS(t, "east"), "x")
	// The peer behaves like an agent that wants to be used: it sends data for connections that do not
	// exist, and it refuses the one dial.
	a.send(data(1, []byte("GET / HTTP/1.1")), data(2, nil), closeResponse(3, "x"), dialResponse(4, 5, ""), &client.Packet{Type: client.PacketType_DRAIN})
	for {
		p, err := a.stream.Recv()
		if err != nil {
			t.Fatalf("the stream ended: %v", err)
		}
		if p.GetType() == client.PacketType_DIAL_REQ {
			a.send(dialResponse(p.GetDialRequest().GetRandom(), 0, "no"))
			break
		}
	}
	dialertest.Within(t, entered, "the enroller")
	if n, _ := g.Agents("east"); n != 0 {
		t.Errorf("%d agents", n)
	}
	var none *dialer.NoAgentError
	if _, err := g.dialer(t, "east", dialer.ForRequests).DialContext(t.Context(), "tcp", apiServer); !errors.As(err, &none) {
		t.Errorf("a request's dial: %v; want NoAgentError", err)
	}
	// A second stream with the same invitation is refused for now.
	if err := g.connectInvited(t, g.invitedTLS(t, "east"), "x").end(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a second stream: %v", err)
	}
	close(release)
	if err := a.end(); !errors.Is(err, io.EOF) {
		t.Errorf("the stream ended with %v", err)
	}
}

// TestInvitedIsBounded shows that an enrollment ends in time with an agent that does not answer,
// with an Enroller that waits, with a connection that receives nothing, and at a shutdown.
func TestInvitedIsBounded(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		enroll enrollerFunc
	}{
		{"silent agent", func(ctx context.Context, invited Invited) error { _, err := invited.Dial(ctx, apiServer); return err }},
		{"enroller that waits", func(ctx context.Context, _ Invited) error { <-ctx.Done(); return context.Cause(ctx) }},
		{"connection that receives nothing", func(ctx context.Context, invited Invited) error {
			conn, err := invited.Dial(ctx, apiServer)
			if err != nil {
				return err
			}
			_, err = conn.Read(make([]byte, 1))
			return err
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := startGateway(t, func(cfg *Config) {
				cfg.Enroller, cfg.enrollmentTimeout, cfg.refusalPause = c.enroll, 100*time.Millisecond, 10*time.Millisecond
			})
			a := g.connectInvited(t, g.invitedTLS(t, "east"), "x")
			ended := make(chan error, 1)
			go func() {
				p, err := a.stream.Recv()
				if err == nil && strings.HasPrefix(c.name, "connection") {
					// This fails if the enrollment has ended by now. The stream's end has the reason.
					_ = a.stream.Send(dialResponse(p.GetDialRequest().GetRandom(), 1, ""))
				}
				if err == nil {
					err = a.end()
				}
				ended <- err
			}()
			if err := dialertest.Within(t, ended, "the enrollment"); status.Code(err) != codes.PermissionDenied {
				t.Errorf("the stream ended with %v", err)
			}
		})
	}
	t.Run("shutdown", func(t *testing.T) {
		entered := make(chan struct{})
		g := startGateway(t, func(cfg *Config) {
			cfg.Enroller = enrollerFunc(func(ctx context.Context, _ Invited) error { close(entered); <-ctx.Done(); return ctx.Err() })
		})
		a := g.connectInvited(t, g.invitedTLS(t, "east"), "x")
		dialertest.Within(t, entered, "the enroller")
		g.stop()
		if err := a.end(); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("the stream ended with %v", err)
		}
	})
}

// TestInvitedRefused shows which peers are refused without asking the Enroller.
func TestInvitedRefused(t *testing.T) {
	t.Parallel()
	g := startGateway(t, func(c *Config) {
		c.Enroller = enrollerFunc(func(context.Context, Invited) error { t.Error("the enroller was called"); return nil })
	})
	for _, c := range []struct {
		name string
		pair tls.Certificate
	}{
		{"upper case", g.ca.Client(t, "East", v1alpha1.InvitationOrganization)},
		{"path", g.ca.Client(t, "../east", v1alpha1.InvitationOrganization)},
		{"a second organization", g.ca.Client(t, "east", v1alpha1.InvitationOrganization, "system:masters")},
	} {
		if err := g.connectInvited(t, g.ca.ClientTLS(c.pair), "x").end(); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	none := startGateway(t, nil)
	if err := none.connectInvited(t, none.invitedTLS(t, "east"), "x").end(); status.Code(err) != codes.Unimplemented {
		t.Errorf("a gateway without an enroller: %v", err)
	}
}

// servingEnroller lets invitations serve as agents' certificates until they are revoked.
type servingEnroller struct{ revoked atomic.Bool }

func (e *servingEnroller) Enroll(ctx context.Context, invited Invited) (bool, error) {
	return true, e.Serves(ctx, invited)
}

func (e *servingEnroller) Serves(context.Context, Invited) error {
	if e.revoked.Load() {
		return errors.New("the invitation was revoked")
	}
	return nil
}

// TestInvitedServes shows that an agent can use its invitation as its certificate for as long as
// the Enroller allows it.
func TestInvitedServes(t *testing.T) {
	t.Parallel()
	e := &servingEnroller{}
	g := startGateway(t, func(c *Config) {
		c.Enroller, c.servesInterval, c.refusalPause = e, 10*time.Millisecond, 10*time.Millisecond
	})
	a, err := g.tryConnect(t, g.invitedTLS(t, "east"), "process")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		a.echo(nil)
		ended <- a.end()
	}()
	c := mustDial(t, g.dialer(t, "east", dialer.ForRequests))
	mustEcho(t, c, "like any agent")
	var none *dialer.NoAgentError
	if _, err := g.dialer(t, "west", dialer.ForRequests).DialContext(t.Context(), "tcp", apiServer); !errors.As(err, &none) {
		t.Errorf("a dial for another cluster: %v", err)
	}
	e.revoked.Store(true)
	if err := dialertest.Within(t, ended, "the end of the stream"); err == nil || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("the stream ended with %v", err)
	}
	if err := g.connectInvited(t, g.invitedTLS(t, "east"), "x").end(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("another stream: %v", err)
	}
}
