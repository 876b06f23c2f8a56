// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"sigs.k8s.io/apiserver-network-proxy/proto/agent"
	"sigs.k8s.io/apiserver-network-proxy/proto/header"
)

// Connect implements the AgentService of the Konnectivity protocol. gRPC calls it once for each
// stream of an agent. The status with which the stream ends is the reason for the agent:
//
//   - PermissionDenied: its certificate, or its invitation, is not accepted.
//   - ResourceExhausted: its cluster already has as many agents as it may have.
//   - InvalidArgument: it broke the protocol.
//   - Unavailable: everything else, for example a shutdown of the gateway.
func (s *Server) Connect(stream agent.AgentService_ConnectServer) error {
	peer, err := identify(stream.Context())
	if err != nil {
		s.logRefusal("", "", err.Error())
		return status.Error(codes.PermissionDenied, err.Error())
	}
	if peer.invited {
		if serves, err := s.enroll(peer, stream); err != nil || !serves {
			return err
		}
	}
	if err := s.accept(peer); err != nil {
		s.refuse(peer.cluster, err.Error())
		s.logRefusal(peer.cluster, peer.address, err.Error())
		return status.Error(codes.PermissionDenied, err.Error())
	}
	se, err := s.admit(peer, claimedID(stream.Context()), packets{stream})
	if err != nil {
		s.logRefusal(peer.cluster, peer.address, err.Error())
		return status.Error(codes.ResourceExhausted, err.Error())
	}
	// What Recheck has ended meanwhile did not contain this stream yet.
	if err := s.accept(peer); err != nil {
		se.end(err)
	}
	if peer.invited {
		s.running.Go(func() { s.checkInvitation(stream.Context(), se) })
	}
	s.reportAgents(peer.cluster)
	if err := s.awaitActivation(se, stream); err != nil {
		s.running.Add(-2)
		s.remove(se)
		return err
	}
	s.reportAgents(peer.cluster)
	// The header goes first, because the agent serves nothing before it. Dials that already find
	// the session wait in its queue.
	if err := stream.SendHeader(s.header(se.serverID)); err != nil {
		s.running.Add(-2)
		s.remove(se)
		return err
	}
	go func() { defer s.running.Done(); se.sendLoop() }()
	go func() { defer s.running.Done(); se.receiveLoop() }()
	se.logger.Info("An agent connected", "address", peer.address)

	// Returning ends the stream, and with it a Send or Recv in the two loops that is still blocked.
	<-se.done
	s.remove(se)
	se.logger.Info("The stream of an agent ended", "reason", se.ended.Error(), "after", time.Since(se.since).Round(time.Second))
	switch {
	case errors.Is(se.ended, errUnused):
		return nil // the agent takes it for a normal end
	case errors.Is(se.ended, errStalled):
		// The agent does not read, so it would not read the status either.
		return errors.Join(se.ended, peer.hangUp())
	case errors.Is(se.ended, errProtocol):
		return status.Error(codes.InvalidArgument, se.ended.Error())
	}
	return status.Error(codes.Unavailable, se.ended.Error())
}

// claimedID returns the ID that the agent claims, quoted and shortened for log lines.
func claimedID(ctx context.Context) string {
	md, _ := metadata.FromIncomingContext(ctx)
	if ids := md.Get(header.AgentID); len(ids) > 0 {
		return fmt.Sprintf("%.64q", ids[0])
	}
	return `""`
}
