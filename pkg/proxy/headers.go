// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"net/http"
	"strings"
)

// credentialHeaders and credentialPrefixes name the headers that carry the identity or the
// credentials of the caller, or of a client of the caller. None of them may reach a managed
// cluster.
var (
	credentialHeaders  = []string{"Authorization", "Proxy-Authorization", "Cookie", "X-Real-Ip", "Forwarded"}
	credentialPrefixes = []string{"X-Remote-", "Impersonate-", "X-Forwarded-", peerPrefix}
)

// bearerProtocolPrefix begins the WebSocket subprotocol in which a browser sends its token
// (k8s.io/apiserver/pkg/authentication/request/websocket).
const bearerProtocolPrefix = "base64url.bearer.authorization.k8s.io."

// stripRequest removes every header that must not reach a managed cluster. A hub may be configured
// to name the caller in other headers; the authentication filter has already removed those
// (k8s.io/apiserver, WithAuthentication).
func stripRequest(h http.Header) {
	for _, name := range credentialHeaders {
		h.Del(name)
	}
	for name := range h {
		for _, prefix := range credentialPrefixes {
			// net/http makes header names canonical, but a handler in front of this one may have
			// set others.
			if hasPrefixFold(name, prefix) {
				delete(h, name)
			}
		}
	}
	stripBearerProtocols(h)
}

func hasPrefixFold(s, prefix string) bool {
	return len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
}

func stripBearerProtocols(h http.Header) {
	const name = "Sec-Websocket-Protocol"
	values, ok := h[name]
	if !ok {
		return
	}
	var kept []string
	for _, value := range values {
		for protocol := range strings.SplitSeq(value, ",") {
			if protocol = strings.TrimSpace(protocol); protocol != "" && !hasPrefixFold(protocol, bearerProtocolPrefix) {
				kept = append(kept, protocol)
			}
		}
	}
	h.Del(name)
	if len(kept) > 0 {
		h.Set(name, strings.Join(kept, ", "))
	}
}

// stripResponse removes the headers of a managed API server that would be applied to the hub's
// host, and those that the gateway sets itself.
func stripResponse(h http.Header) {
	for _, name := range []string{
		"Set-Cookie",                // would be set for the hub's name
		"Www-Authenticate",          // the client would send its answer to the hub
		"Alt-Svc",                   // would lead the client around the gateway
		"Strict-Transport-Security", // is about a host that the client does not connect to
		"Clear-Site-Data",           // would clear the hub's data
		"Audit-Id",                  // the gateway sets its own, and sent the same ID to the cluster
	} {
		h.Del(name)
	}
	for name := range h { // another replica would take them for those of this one
		if hasPrefixFold(name, peerPrefix) {
			delete(h, name)
		}
	}
}
