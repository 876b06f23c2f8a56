// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"sigs.k8s.io/apiserver-network-proxy/proto/agent"
	"sigs.k8s.io/apiserver-network-proxy/proto/header"

	"github.com/oam-dev/cluster-gateway/pkg/dialer"
)

const (
	// maxEnrolling bounds the enrollments at a time.
	maxEnrolling = 16
	// maxToken bounds a bearer token, in bytes. It is more than any ServiceAccount's token has.
	maxToken = 16 << 10
)

// enrollment is the stream of an invited cluster. Its session is in no table from which requests
// choose one, so only the Enroller's connections use it.
type enrollment struct {
	*session
	server *Server
	budget *dialer.Budget // of all its connections
	// start begins to serve the stream, at the first dial. Until then the agent has no header, and
	// takes a refusal as a failed attempt, after which it backs off. A refusal after the header is
	// a stream that has ended, after which the agent connects again at once.
	start func() error
}

// enroll gives a peer with an invitation to the Enroller. Unless serves is true, the stream ends
// with the enrollment, whatever its outcome. If serves is true, the stream has not begun.
func (s *Server) enroll(peer *peerIdentity, stream agent.AgentService_ConnectServer) (serves bool, err error) {
	if s.cfg.Enroller == nil {
		return false, status.Error(codes.Unimplemented, "this gateway does not accept invitations")
	}
	e := s.newEnrollment(peer, stream)
	if err := s.admitEnrollment(e); err != nil {
		return false, status.Error(codes.ResourceExhausted, err.Error())
	}
	ctx, cancel := context.WithTimeoutCause(stream.Context(), s.cfg.enrollmentTimeout, errors.New("the enrollment took too long"))
	defer cancel()
	defer context.AfterFunc(ctx, func() { e.end(context.Cause(ctx)) })()
	// The session may end first: the agent breaks the protocol or does not read, or the gateway
	// shuts down.
	go func() {
		defer s.running.Done()
		<-e.done
		cancel()
	}()
	invited := peer.asInvited()
	invited.Token, invited.Dial = bearerToken(stream.Context()), e.dialAddress
	serves, err = s.cfg.Enroller.Enroll(ctx, invited)
	if err != nil {
		e.pause(ctx)
	}
	s.removeEnrollment(e)
	if err != nil {
		return false, status.Error(codes.PermissionDenied, err.Error())
	}
	return serves, nil
}

func (p *peerIdentity) asInvited() Invited {
	return Invited{Name: p.cluster, Certificate: p.certificates[0], Chain: p.certificates[1:]}
}

// checkInvitation ends the session of an agent when it may no longer use its invitation as its
// certificate.
func (s *Server) checkInvitation(ctx context.Context, se *session) {
	ticker := time.NewTicker(s.cfg.servesInterval)
	defer ticker.Stop()
	for {
		select {
		case <-se.done:
			return
		case <-ticker.C:
		}
		checkCtx, cancel := context.WithTimeout(ctx, s.cfg.servesInterval)
		err := s.cfg.Enroller.Serves(checkCtx, se.peer.asInvited())
		cancel()
		if err != nil {
			se.end(err)
		}
	}
}

// pause keeps a refused cluster from trying again at once. Its name stays in use meanwhile, so
// other streams of that name are refused without asking the hub.
func (e *enrollment) pause(ctx context.Context) {
	timer := time.NewTimer(e.server.cfg.refusalPause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

func (s *Server) newEnrollment(peer *peerIdentity, stream agent.AgentService_ConnectServer) *enrollment {
	e := &enrollment{server: s, budget: s.budgets.Separate(peer.cluster)}
	e.session = newSession(&s.cfg, peer, claimedID(stream.Context()), dialer.ForRequests, packets{stream},
		s.cfg.Logger.WithValues("invitation", peer.cluster))
	e.start = sync.OnceValue(func() error {
		s.mu.Lock()
		if s.closed || e.hasEnded() {
			s.mu.Unlock()
			return errAgentGone
		}
		s.running.Add(2)
		s.mu.Unlock()
		go func() { defer s.running.Done(); e.sendLoop() }()
		go func() { defer s.running.Done(); e.receiveLoop() }()
		// A count of one: any one of several replicas can enroll the cluster.
		return stream.SendHeader(metadata.Pairs(header.ServerID, s.cfg.ServerID+"/enrollment", header.ServerCount, "1"))
	})
	return e
}

func (s *Server) admitEnrollment(e *enrollment) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return errors.New("the gateway is shutting down")
	case s.enrolling[e.peer.cluster] != nil:
		return errors.New("another stream is using this invitation at the moment")
	case len(s.enrolling) >= maxEnrolling:
		return errors.New("too many clusters are being enrolled at the moment; the agent will try again")
	}
	s.enrolling[e.peer.cluster] = e
	s.running.Add(1)
	return nil
}

func (s *Server) removeEnrollment(e *enrollment) {
	e.end(errAgentGone)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.enrolling, e.peer.cluster)
}

func (e *enrollment) hasEnded() bool {
	select {
	case <-e.done:
		return true
	default:
		return false
	}
}

func (e *enrollment) dialAddress(ctx context.Context, address string) (net.Conn, error) {
	if err := e.start(); err != nil {
		return nil, e.agentError(address, err)
	}
	conn, err := e.dial(ctx, address, e.budget)
	if err != nil {
		return nil, err // not a nil *tunnelConn
	}
	return conn, nil
}

// bearerToken returns the token that the agent has read from its --service-account-token-path.
func bearerToken(ctx context.Context) string {
	md, _ := metadata.FromIncomingContext(ctx)
	for _, value := range md.Get(header.AuthenticationTokenContextKey) {
		if token, ok := strings.CutPrefix(value, header.AuthenticationTokenContextSchemePrefix); ok && len(token) <= maxToken {
			return strings.TrimSpace(token)
		}
	}
	return ""
}
