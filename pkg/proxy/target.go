// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"fmt"
	"net/url"
	"strings"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// target is the destination of a request to the proxy subresource.
type target struct {
	// cluster is the name of the managed cluster.
	cluster string
	// prefix is the escaped path up to and including "/proxy".
	prefix string
	// rawPath is the escaped path on the cluster. It begins with a slash.
	rawPath string
}

// parseTarget splits the escaped path of a request: base + NAME + "/proxy" + PATH. It works on the
// escaped form, so that PATH arrives as the caller wrote it, including escaped slashes. ok is false
// when the escaped form could be read differently from the decoded one: when the name contains an
// escape, or a slash before PATH is escaped.
func parseTarget(u *url.URL, base string) (t target, ok bool) {
	raw := escapedPath(u)
	rest, ok := strings.CutPrefix(raw, base)
	if !ok {
		return target{}, false
	}
	name, rest, ok := strings.Cut(rest, "/")
	if !ok || name == "" || strings.Contains(name, "%") {
		return target{}, false
	}
	path, ok := strings.CutPrefix(rest, v1alpha1.ProxySubresource)
	if !ok || path != "" && path[0] != '/' {
		return target{}, false
	}
	t = target{cluster: name, prefix: raw[:len(raw)-len(path)], rawPath: path}
	if path == "" {
		t.rawPath = "/"
	}
	return t, true
}

// escapedPath returns the path of u as it was written. url.URL.EscapedPath ignores RawPath when
// that contains a character that should have been escaped ("|"), and then loses other escapes, such
// as an escaped slash. Here, only that character is escaped.
func escapedPath(u *url.URL) string {
	raw := u.EscapedPath()
	if u.RawPath == "" || raw == u.RawPath {
		return raw
	}
	var b strings.Builder
	for i := range len(u.RawPath) {
		if c := u.RawPath[i]; strings.IndexByte(pathCharacters, c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	if path, err := url.PathUnescape(b.String()); err != nil || path != u.Path {
		return raw // RawPath does not match Path, and Path is what was authorized
	}
	return b.String()
}

// pathCharacters are the characters that url.URL.EscapedPath accepts in a RawPath.
const pathCharacters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.~!$&'()*+,;=:@[]/%"

// onEndpoint returns the URL of t on a cluster whose API server is at endpoint, with the query of
// in. The query is kept byte for byte: the cluster may understand a query that this process cannot
// parse.
func (t target) onEndpoint(endpoint, in *url.URL) *url.URL {
	raw := endpoint.EscapedPath() + t.rawPath
	path, err := url.PathUnescape(raw)
	if err != nil { // impossible: both parts come from parsed URLs
		path = raw
	}
	return &url.URL{
		Scheme: endpoint.Scheme, Host: endpoint.Host, Path: path, RawPath: raw,
		RawQuery: in.RawQuery, ForceQuery: in.ForceQuery,
	}
}

// escapes reports whether t could leave the path of the endpoint, if the server there resolves dot
// segments. One host may serve many clusters, each below a path of its own.
func (t target) escapes(endpoint *url.URL) bool {
	return endpoint.EscapedPath() != "" && hasDotSegment(t.rawPath)
}

// hasDotSegment reports whether an escaped path has a "." or ".." segment. Slashes and backslashes
// separate segments, whether they are escaped or not, because some servers treat them all alike.
// Parameters of a segment ("..;x") are ignored.
func hasDotSegment(path string) bool {
	// Several servers in a row may each remove one level of escapes.
	for range 4 {
		for segment := range strings.FieldsFuncSeq(path, func(r rune) bool { return r == '/' || r == '\\' }) {
			segment, _, _ = strings.Cut(segment, ";")
			if segment == "." || segment == ".." {
				return true
			}
		}
		plain, err := url.PathUnescape(path)
		if err != nil || plain == path {
			return false
		}
		path = plain
	}
	return true
}
