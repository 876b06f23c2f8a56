// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"encoding/binary"
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

	"github.com/oam-dev/cluster-gateway/pkg/internal/untrusted"
)

// Opcodes of WebSocket frames, and what a frame can hold (RFC 6455, 5.2 and 5.5).
const (
	opcodeBinary = 0x2
	opcodeClose  = 0x8
	finalFrame   = 0x80
	// maxControlPayload is the most that a Close frame can hold.
	maxControlPayload = 125
	// closeNormal is the code for a normal end, and closeInternalError for an end that the client did
	// not cause (RFC 6455, 7.4.1).
	closeNormal        = 1000
	closeInternalError = 1011
)

// The channels of exec and attach on which the API server reports how the command has ended, as a
// Status (k8s.io/client-go/tools/remotecommand/websocket.go).
const errorChannel = 3

// closingTimeout is how long a client may take to read why its connection ends.
const closingTimeout = time.Second

// frames follows the WebSocket frames of one direction of a connection as they pass. It knows where
// a frame can be added. The zero value is ready for use.
type frames struct {
	header [10]byte
	have   int // bytes of the next header that have passed
	// left counts the bytes of the frame that have not passed. first is set until one has.
	left  uint64
	first bool
	// fragmented is set in the middle of a message that has several frames.
	fragmented bool
	// closed is set when a Close frame has passed, and reported when a Status has.
	closed, reported bool
}

// pass takes notice of bytes that pass.
func (f *frames) pass(p []byte) {
	for len(p) > 0 {
		if f.left == 0 {
			f.header[f.have] = p[0]
			f.have++
			p = p[1:]
			if f.have == f.headerSize() {
				f.begin()
			}
			continue
		}
		if f.first {
			f.reported = f.reported || f.header[0]&0xf == opcodeBinary && p[0] == errorChannel
			f.first = false
		}
		n := min(f.left, uint64(len(p)))
		p, f.left = p[n:], f.left-n
	}
}

// headerSize returns the size of the header that begins with the bytes so far, without the mask.
func (f *frames) headerSize() int {
	if f.have < 2 {
		return 2
	}
	switch f.header[1] & 0x7f {
	case 126:
		return 4
	case 127:
		return 10
	default:
		return 2
	}
}

// begin begins a frame whose header is complete.
func (f *frames) begin() {
	switch f.headerSize() {
	case 4:
		f.left = uint64(binary.BigEndian.Uint16(f.header[2:]))
	case 10:
		f.left = binary.BigEndian.Uint64(f.header[2:])
	default:
		f.left = uint64(f.header[1] & 0x7f)
	}
	if f.header[1]&0x80 != 0 {
		f.left += 4 // the mask, which servers do not use
	}
	f.have, f.first = 0, f.left > 0
	switch opcode := f.header[0] & 0xf; {
	case opcode == opcodeClose:
		f.closed = true
	case opcode < opcodeClose:
		f.fragmented = f.header[0]&finalFrame == 0
	}
}

// closing returns the frames that tell the client why the connection ends: with withStatus a Status
// on the channel for errors, and a Close frame. It is empty where no frame can be added.
func (f *frames) closing(message string, withStatus bool) []byte {
	if f.have > 0 || f.left > 0 || f.closed {
		return nil
	}
	var text []byte
	code := uint16(closeInternalError)
	if withStatus && !f.fragmented && !f.reported {
		status, err := json.Marshal(metav1.Status{
			TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
			Status:   metav1.StatusFailure, Code: http.StatusBadGateway, Reason: StatusReasonBadGateway, Message: message,
		})
		if err == nil { // a Status has nothing that could fail
			text = appendFrame(text, opcodeBinary, append([]byte{errorChannel}, status...))
			code = closeNormal // client-go forgets the Status after any other code
		}
	}
	reason := untrusted.Limit(message, maxControlPayload-2)
	return appendFrame(text, opcodeClose, append(binary.BigEndian.AppendUint16(nil, code), reason...))
}

// appendFrame appends a frame with at most 65,535 bytes.
func appendFrame(to []byte, opcode byte, payload []byte) []byte {
	to = append(to, finalFrame|opcode)
	if len(payload) < 126 {
		to = append(to, byte(len(payload))) //nolint:gosec // see above
	} else {
		to = binary.BigEndian.AppendUint16(append(to, 126), uint16(len(payload))) //nolint:gosec // see above
	}
	return append(to, payload...)
}

// followFrames makes the connection of an upgrade tell its client why it ends, if that is a
// WebSocket. A client that is not told can only say that the connection was closed.
func (x *exchange) followFrames(conn *upgradedConn, accepted http.Header) {
	if !strings.EqualFold(accepted.Get("Upgrade"), "websocket") {
		return
	}
	var passed frames
	withStatus := false
	switch accepted.Get("Sec-Websocket-Protocol") {
	case remotecommand.StreamProtocolV4Name, remotecommand.StreamProtocolV5Name:
		withStatus = true
	}
	x.tellsClient = true
	conn.passed = passed.pass
	conn.closing = func(err error) []byte {
		reason := x.endReason(err)
		// A command that has ended without a Status was lost. Other connections can end with EOF.
		if reason == "" || err == io.EOF && (!withStatus || passed.reported) { //nolint:errorlint // a wrapped EOF is a fault
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
