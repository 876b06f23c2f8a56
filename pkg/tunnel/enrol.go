// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"context"
	"crypto/x509"
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

// Enroller takes in clusters that come with an invitation.
type Enroller interface {
	// Enroll either makes the invited cluster a registered one or says why not, in words for whoever runs it. ctx ends with the
	// cluster's stream, and after [EnrolmentTimeout]. It is called for one stream of a name at a time. When serves is true, the cluster is
	// registered already, and its invitation is the certificate of its agent from now on: nothing may have been dialled then.
	Enroll(ctx context.Context, invited Invited) (serves bool, err error)
	// Serves is whether that is still so: the error is why not. What cannot be found out is none. Of invited, Dial is nil.
	Serves(ctx context.Context, invited Invited) error
}

// Invited is a cluster that wants to be enrolled. All of it but the certificate is what the peer says.
type Invited struct {
	// Name is the common name of the invitation's certificate, a DNS label.
	Name string
	// Certificate is the invitation's, verified. Chain is what the peer sent along with it: anything.
	Certificate *x509.Certificate
	Chain       []*x509.Certificate
	// Token is the bearer token that came with the stream, or "".
	Token string
	// Dial connects to an address, host:port, as the peer resolves it, over the peer's own stream. What answers is not verified
	// here. Its connections end with ctx of Enroll at the latest.
	Dial func(ctx context.Context, address string) (net.Conn, error)
}

const (
	// EnrolmentTimeout bounds what is done for one stream.
	EnrolmentTimeout = time.Minute
	// servesInterval is how often the enroller is asked whether an agent's invitation may still serve.
	servesInterval = 10 * time.Second
	// refusalPause is how long a refusal takes, so that one invitation cannot make the gateway ask the hub more often than that.
	refusalPause = time.Second
	// maxEnrolling bounds the streams that enrol at a time.
	maxEnrolling = 16
	// maxToken is more than any ServiceAccount's token.
	maxToken = 16 << 10
)

// enrolment is the stream of an invited cluster. Its session is in no table that requests are sent by: nobody's connection goes over it
// but the enroller's.
type enrolment struct {
	*session
	server *Server
	budget *dialer.Budget // of all its connections
	// start serves the stream from the first dial on. Until then the agent has no header, so that it takes a refusal for a failed
	// attempt, after which it backs off; one that comes later is a stream that ended, after which it comes again at once.
	start func() error
}

// enrol hands a peer with an invitation to the enroller. The stream ends with it, whatever came of it, but if it serves: then it has not begun.
func (s *Server) enrol(peer *peerIdentity, stream agent.AgentService_ConnectServer) (serves bool, err error) {
	if s.cfg.Enroller == nil {
		return false, status.Error(codes.Unimplemented, "this gateway takes no invitations")
	}
	e := s.newEnrolment(peer, stream)
	if err := s.admitEnrolment(e); err != nil {
		return false, status.Error(codes.ResourceExhausted, err.Error())
	}
	ctx, cancel := context.WithTimeoutCause(stream.Context(), s.cfg.enrolmentTimeout, errors.New("the enrolment took too long"))
	defer cancel()
	defer context.AfterFunc(ctx, func() { e.end(context.Cause(ctx)) })()
	// The session may end first: the agent broke the protocol, does not read, or the gateway is shutting down.
	go func() {
		defer s.loops.Done()
		<-e.done
		cancel()
	}()
	invited := peer.asInvited()
	invited.Token, invited.Dial = bearerToken(stream.Context()), e.dialAddress
	serves, err = s.cfg.Enroller.Enroll(ctx, invited)
	if err != nil {
		e.pause(ctx)
	}
	s.removeEnrolment(e)
	if err != nil {
		return false, status.Error(codes.PermissionDenied, err.Error())
	}
	return serves, nil
}

func (p *peerIdentity) asInvited() Invited {
	return Invited{Name: p.cluster, Certificate: p.certificates[0], Chain: p.certificates[1:]}
}

// keepAsking ends the session of an agent whose invitation may not serve any more.
func (s *Server) keepAsking(ctx context.Context, se *session) {
	ticker := time.NewTicker(s.cfg.servesInterval)
	defer ticker.Stop()
	for {
		select {
		case <-se.done:
			return
		case <-ticker.C:
		}
		asking, cancel := context.WithTimeout(ctx, s.cfg.servesInterval)
		err := s.cfg.Enroller.Serves(asking, se.peer.asInvited())
		cancel()
		if err != nil {
			se.end(err)
		}
	}
}

// pause keeps a refused cluster from coming again at once: its name stays taken meanwhile, and others of that name cost nothing.
func (e *enrolment) pause(ctx context.Context) {
	timer := time.NewTimer(refusalPause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

func (s *Server) newEnrolment(peer *peerIdentity, stream agent.AgentService_ConnectServer) *enrolment {
	e := &enrolment{server: s, budget: s.budgets.Separate()}
	e.session = newSession(peer, claimedID(stream.Context()), dialer.ForRequests, packets{stream}, s.cfg.ReceiveBuffer, s.cfg.attemptTimeout,
		s.cfg.Logger.WithValues("invitation", peer.cluster))
	e.start = sync.OnceValue(func() error {
		s.mu.Lock()
		if s.closed || e.hasEnded() {
			s.mu.Unlock()
			return errAgentGone
		}
		s.loops.Add(2)
		s.mu.Unlock()
		go func() { defer s.loops.Done(); e.sendLoop() }()
		go func() { defer s.loops.Done(); e.receiveLoop() }()
		// One server only: of several replicas, any will do.
		return stream.SendHeader(metadata.Pairs(header.ServerID, s.cfg.ServerID+"/enrolment", header.ServerCount, "1"))
	})
	return e
}

func (s *Server) admitEnrolment(e *enrolment) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return errors.New("the gateway is shutting down")
	case s.enrolling[e.peer.cluster] != nil:
		return errors.New("this invitation is being used by another stream at this moment")
	case len(s.enrolling) >= maxEnrolling:
		return errors.New("the gateway enrols too many clusters at this moment: it is tried again")
	}
	s.enrolling[e.peer.cluster] = e
	s.loops.Add(1)
	return nil
}

func (s *Server) removeEnrolment(e *enrolment) {
	e.end(errAgentGone)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.enrolling, e.peer.cluster)
}

func (e *enrolment) hasEnded() bool {
	select {
	case <-e.done:
		return true
	default:
		return false
	}
}

func (e *enrolment) dialAddress(ctx context.Context, address string) (net.Conn, error) {
	if err := e.start(); err != nil {
		return nil, e.agentError(address, err)
	}
	return e.dial(ctx, address, e.budget)
}

// bearerToken is what the agent's --service-account-token-path held.
func bearerToken(ctx context.Context) string {
	md, _ := metadata.FromIncomingContext(ctx)
	for _, value := range md.Get(header.AuthenticationTokenContextKey) {
		if token, ok := strings.CutPrefix(value, header.AuthenticationTokenContextSchemePrefix); ok && len(token) <= maxToken {
			return strings.TrimSpace(token)
		}
	}
	return ""
}
