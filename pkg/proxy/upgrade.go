// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"net/http"
	"strings"
)

// isUpgrade reports whether a message asks to leave HTTP, or does so.
func isUpgrade(h http.Header) bool { return upgradeProtocol(h) != "" }

// upgradeProtocol returns the protocol that a request asks for, or that an answer switches to. It
// is empty when the message does neither.
func upgradeProtocol(h http.Header) string {
	for _, value := range h["Connection"] {
		for token := range strings.SplitSeq(value, ",") {
			if strings.EqualFold(strings.TrimSpace(token), "upgrade") {
				return h.Get("Upgrade")
			}
		}
	}
	return ""
}

var errUnexpectedUpgrade = errors.New("it switched to another protocol without being asked to")

// switchProtocols handles an answer with which the cluster accepts an upgrade.
func (x *exchange) switchProtocols(resp *http.Response) error {
	x.upgraded = resp.Body
	// ReverseProxy compares the two protocols, and would accept a switch to none in answer to a
	// request for none.
	if !isUpgrade(resp.Request.Header) || !isUpgrade(resp.Header) {
		return errUnexpectedUpgrade
	}
	context.AfterFunc(x.ctx, x.closeUpgraded)
	return nil
}

// becomeStream lifts the deadline of an upgrade that the cluster has answered, and counts it among
// the streams.
func (x *exchange) becomeStream() error {
	if !x.deadline.Stop() {
		return errDeadline // it has just passed, and x.ctx ends
	}
	x.lease.becomeStream()
	x.startStream()
	if x.handler.streamsCtx.Err() != nil {
		x.cancel(errShuttingDown)
		return errShuttingDown
	}
	return nil
}

// closeUpgraded closes the connection to the cluster when the exchange ends. ReverseProxy does not
// close it when it fails to take over the client's connection.
func (x *exchange) closeUpgraded() {
	if x.upgraded != nil {
		_ = x.upgraded.Close()
	}
}
