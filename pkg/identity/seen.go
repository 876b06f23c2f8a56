// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"fmt"
	"net/http"
	"net/textproto"
	"slices"
	"strings"
)

// Headers with which an API server is asked to impersonate somebody
// (k8s.io/api/authentication/v1).
const (
	headerUser        = "Impersonate-User"
	headerUID         = "Impersonate-Uid"
	headerGroup       = "Impersonate-Group"
	headerExtraPrefix = "Impersonate-Extra-"
)

// Limits of the headers of one identity. API servers accept a megabyte, but servers in front of
// them may not. An API server asks its authorizer about each group.
const (
	MaxHeaders     = 128
	MaxHeaderBytes = 16 << 10
)

// Seen is who a cluster sees. The zero value is nobody: it has no headers, and nothing may be sent
// with it.
type Seen struct {
	// Mode is that of the cluster, and Rule the name of the rule that was applied, or empty.
	Mode Mode
	Rule string
	// User is nil if the cluster sees the account of the gateway.
	User *User

	decided bool
	headers http.Header
}

// account returns that the cluster sees the account of the gateway.
func account(mode Mode, rule string) Seen { return Seen{Mode: mode, Rule: rule, decided: true} }

// impersonated returns that the cluster sees u, unless it does not fit into headers.
func impersonated(mode Mode, rule string, u User) (Seen, *Refusal) {
	h := http.Header{headerUser: {u.Name}}
	if u.UID != "" {
		h[headerUID] = []string{u.UID}
	}
	if len(u.Groups) > 0 {
		h[headerGroup] = slices.Clone(u.Groups)
	}
	for key, values := range u.Extra {
		h[textproto.CanonicalMIMEHeaderKey(headerExtraPrefix+escapeExtraKey(key))] = slices.Clone(values)
	}
	count, bytes := 0, 0
	for name, values := range h {
		for _, value := range values {
			count++
			bytes += len(name) + len(": \r\n") + len(value)
		}
	}
	if count > MaxHeaders || bytes > MaxHeaderBytes {
		return Seen{}, refuse(ReasonTooLarge, "user %s with %d groups needs %d headers of %d bytes, and at most %d headers of %d bytes are sent to a cluster; the list of groups is not cut",
			quote(u.Name), len(u.Groups), count, bytes, MaxHeaders, MaxHeaderBytes)
	}
	return Seen{Mode: mode, Rule: rule, User: &u, decided: true, headers: h}, nil
}

// Headers returns the headers with which the cluster is asked to see s. They must not be changed.
// There are none for the account of the gateway. ok is false for the zero value.
func (s Seen) Headers() (h http.Header, ok bool) { return s.headers, s.decided }

// escapeExtraKey returns a key as a part of the name of a header. An API server reads the name in
// lower case and removes the percent-encoding.
func escapeExtraKey(key string) string {
	var b strings.Builder
	for i := range len(key) {
		if c := key[i]; c != '%' && isTokenByte(c) {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// isTokenByte reports whether the name of a header can have the byte (RFC 9110, 5.6.2).
func isTokenByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}
