// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
)

// closingTimeout is how long a client may take to read why its connection ends.
const closingTimeout = time.Second

// closingStatus returns the Status that says why a command was lost, as JSON.
func closingStatus(message string) []byte {
	status, _ := json.Marshal(metav1.Status{ // it has nothing that could fail
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
		Status:   metav1.StatusFailure, Code: http.StatusBadGateway, Reason: StatusReasonBadGateway, Message: message,
	})
	return status
}

// followFrames makes the connection of an upgrade tell its client why it ends, if it is a WebSocket
// or SPDY. A client that is not told can only say that the connection was closed, and over SPDY a
// lost command looks like one that has succeeded.
func (x *exchange) followFrames(conn *upgradedConn, accepted http.Header) {
	var passed frames
	protocol := accepted.Get("Sec-Websocket-Protocol")
	switch upgrade := accepted.Get("Upgrade"); {
	case strings.EqualFold(upgrade, "websocket"):
		passed = &webSocketFrames{}
	case strings.EqualFold(upgrade, spdyProtocol):
		followed := &spdyFrames{}
		passed, conn.sent = followed, followed.sent
		protocol = accepted.Get(httpstream.HeaderProtocolVersion)
	default:
		return
	}
	withStatus := protocol == remotecommand.StreamProtocolV4Name || protocol == remotecommand.StreamProtocolV5Name
	x.tellsClient = true
	// Others than API servers may not send the frames that they have agreed to, so nothing is held.
	conn.reader = &wholeFrames{from: conn.ReadWriteCloser, frames: passed, hold: withStatus}
	conn.closing = func(err error) []byte {
		reason := x.endReason(err)
		// A command that has ended without a Status was lost. Other connections can end with EOF.
		if reason == "" || err == io.EOF && (!withStatus || passed.hasReported()) { //nolint:errorlint // a wrapped EOF is a fault
			return nil
		}
		return passed.closing(fmt.Sprintf("the connection to cluster %q has ended: %s", x.lease.cluster.Name, reason), withStatus)
	}
}

// endReason says for the client why an upgraded connection has ended. It is empty if the client
// knows, or is gone.
func (x *exchange) endReason(err error) string {
	switch cause := context.Cause(x.ctx); {
	case errors.Is(cause, errShuttingDown):
		return cause.Error() + "; run the command again"
	case errors.Is(cause, errPermissionLost):
		return "you may no longer do this"
	case cause != nil:
		return ""
	}
	if x.forwarding {
		return "the replica of the gateway that carried it is gone; run the command again"
	}
	if errors.Is(err, net.ErrClosed) { // by this process
		return "the cluster is not registered any more, or in another way"
	}
	if op := new(net.OpError); errors.As(err, &op) {
		err = op.Err // without the addresses of the gateway and of the cluster
	}
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return "its API server has closed it unexpectedly"
	}
	return brief(err) // an agent has its say in it, and it is for a terminal
}
