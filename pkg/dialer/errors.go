// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package dialer

import (
	"errors"
	"fmt"
	"time"
)

// Stage is a step of a dial on its way to an API server.
type Stage string

// The stages, in the order in which a dial passes them.
const (
	// StageTunnel is finding an agent. It fails if no agent of the cluster is connected, or if the
	// konnectivity-server cannot be reached.
	StageTunnel Stage = "tunnel"
	// StageAgent is asking the agent to dial. It fails if the agent disconnects or does not answer.
	StageAgent Stage = "agent"
	// StageEndpoint is connecting to the API server, by the gateway or by the agent on its behalf.
	StageEndpoint Stage = "endpoint"
	// StagePeer is reaching another replica of the gateway, to which an agent of the cluster is
	// connected. Its failures say nothing about the cluster.
	StagePeer Stage = "peer"
	// StageTLS is the TLS handshake with the API server, over a connection that is open.
	StageTLS Stage = "tls"
)

// Error is the error of a dial that failed.
type Error struct {
	// Cluster is the name of the managed cluster.
	Cluster string
	// Stage is the stage at which the dial failed.
	Stage Stage
	// Address is the address to dial, as host:port.
	Address string
	// Err is the cause. It is never nil.
	Err error
}

// Error implements error.
func (e *Error) Error() string {
	switch e.Stage {
	case StageTunnel, StageAgent, StagePeer:
		return fmt.Sprintf("cluster %q: %s: %v", e.Cluster, e.Stage, e.Err)
	default:
		return fmt.Sprintf("cluster %q: %s %s: %v", e.Cluster, e.Stage, e.Address, e.Err)
	}
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// NoAgentError is the cause of a failure at StageTunnel when no agent of the cluster is connected.
type NoAgentError struct {
	// LastSeen is when the cluster's last agent disconnected. It is zero if no agent of the cluster
	// has been connected to this process.
	LastSeen time.Time
	// Since is the time from which this process knows that the cluster has had no agent: LastSeen,
	// or else the time at which this process began to accept agents. It is zero if unknown.
	Since time.Time
	// ReplicaAway is for how long another replica of the gateway, to which an agent is or was
	// connected, has not been seen. It is 0 if there is none.
	ReplicaAway time.Duration
	// External means that a konnectivity-server reported the absence. This process does not see
	// agents then.
	External bool
}

// Error implements error.
func (e *NoAgentError) Error() string {
	switch {
	case e.External:
		return "the konnectivity-server has no agent for it"
	case e.ReplicaAway > 0:
		return fmt.Sprintf("no agent is connected to a replica of the gateway that answers; the replica that had one has not been seen for %s",
			e.ReplicaAway.Round(time.Second))
	case e.LastSeen.IsZero():
		return "no agent is connected, and none has been since the gateway started"
	}
	return "no agent is connected; the last agent disconnected at " + e.LastSeen.UTC().Format(time.RFC3339)
}

var (
	// ErrBufferFull ends a tunneled connection whose client does not read fast enough, so that its
	// receive buffer, or the Budget of its cluster, is used up.
	ErrBufferFull = errors.New("the receive buffer of the tunneled connection is full: its client has stopped reading or is too slow")
	// ErrAddressNotAllowed is the cause of a failed dial through a tunnel to any other address than
	// the cluster's registered API server.
	ErrAddressNotAllowed = errors.New("the address is not the cluster's registered API server")
)
