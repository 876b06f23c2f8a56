// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"

	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/endpoints/request"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// target is what a request to the proxy subresource asks for.
type target struct {
	// cluster is the name of the managed cluster.
	cluster string
	// prefix is the part of the escaped path that leads to the cluster: everything up to and including "/proxy".
	prefix string
	// rawPath is the escaped path on the cluster; it begins with a slash.
	rawPath string
}

// parseTarget splits the escaped path of a request, base + NAME + "/proxy" + PATH. It works on the escaped form, so that
// PATH arrives as the caller wrote it, escaped slashes included. ok is false when the escaped form does not say the same as
// the decoded one would: a name with an escape in it, or an escaped slash before PATH begins.
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

// escapedPath is the path of u as it was written. url.URL.EscapedPath gives up on that where the path holds a character that
// should have been escaped ("|"), and then loses other escapes, such as that of a slash; here only that character is escaped.
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
		return raw // RawPath says something else than Path, which is what was authorised
	}
	return b.String()
}

// pathCharacters are those that url.URL.EscapedPath leaves as they are in a RawPath.
const pathCharacters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.~!$&'()*+,;=:@[]/%"

// onEndpoint returns the URL of t on a cluster whose API server is at endpoint, with the query of in. That is kept to the
// letter: what this process cannot parse, the cluster may.
func (t target) onEndpoint(endpoint, in *url.URL) *url.URL {
	raw := endpoint.EscapedPath() + t.rawPath
	path, err := url.PathUnescape(raw)
	if err != nil { // cannot be: raw was taken from URLs that were parsed
		path = raw
	}
	return &url.URL{
		Scheme: endpoint.Scheme, Host: endpoint.Host, Path: path, RawPath: raw,
		RawQuery: in.RawQuery, ForceQuery: in.ForceQuery,
	}
}

// leaves reports whether t would lead out of the path at which a cluster's API server is, if what serves that path resolves
// dot segments: many clusters can be behind one host. A slash counts however it is escaped, and so does what some servers
// take for one; parameters of a segment ("..;x") are not part of it.
func (t target) leaves(endpoint *url.URL) bool {
	return endpoint.EscapedPath() != "" && hasDotSegment(t.rawPath)
}

func hasDotSegment(path string) bool {
	// More than one server on the way may take escapes out.
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

// credentialHeaders carry the identity or the credentials of the caller, or of a client of the caller; together with the
// prefixes below none of them may reach a managed cluster (design: what must never happen, 2).
var (
	credentialHeaders  = []string{"Authorization", "Proxy-Authorization", "Cookie", "X-Real-Ip", "Forwarded"}
	credentialPrefixes = []string{"X-Remote-", "Impersonate-", "X-Forwarded-"}
)

// bearerProtocolPrefix marks the WebSocket subprotocol by which a browser sends its token
// (k8s.io/apiserver/pkg/authentication/request/websocket).
const bearerProtocolPrefix = "base64url.bearer.authorization.k8s.io."

// stripRequest removes what must not reach a managed cluster. Headers of other names by which a hub is configured to name the
// caller have been removed by then: the filter that authenticates clears them (k8s.io/apiserver, WithAuthentication).
func stripRequest(h http.Header) {
	for _, name := range credentialHeaders {
		h.Del(name)
	}
	for name := range h {
		for _, prefix := range credentialPrefixes {
			// Header names are canonical when they come from net/http; a handler before this one may have set others.
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

// stripResponse removes what a managed API server says that is about its own front door, or that the gateway says itself.
func stripResponse(h http.Header) {
	for _, name := range []string{
		"Set-Cookie",                // would be set for the hub's name
		"Www-Authenticate",          // what is given in answer would go to the hub
		"Alt-Svc",                   // leads around the gateway
		"Strict-Transport-Security", // is about a host that the caller does not talk to
		"Clear-Site-Data",           // would clear the hub's
		"Audit-Id",                  // the gateway's own is the one to look for; the cluster was sent the same
	} {
		h.Del(name)
	}
}

// errRedirect ends a redirect that leads away from the cluster.
var errRedirect = errors.New("the cluster redirects to another place")

// rewriteLocation makes a Location that leads to the same managed API server one that leads there through the gateway. A redirect
// to anywhere else is an error: the client would follow it with the credential that it has for the hub, or be led to another
// cluster (as in CVE-2022-3172, for which the hub's aggregation layer follows no redirects at all).
func rewriteLocation(resp *http.Response, endpoint *url.URL, prefix string) error {
	location := resp.Header.Get("Location")
	if location == "" {
		return nil
	}
	if through, ok := locationThroughGateway(location, resp.Request.URL, endpoint, prefix); ok {
		resp.Header.Set("Location", through)
		return nil
	}
	if resp.StatusCode/100 == 3 {
		return errRedirect
	}
	return nil
}

// locationThroughGateway resolves a Location against the URL that the cluster was asked for.
func locationThroughGateway(location string, asked, endpoint *url.URL, prefix string) (string, bool) {
	u, err := url.Parse(location)
	if err != nil {
		return "", false
	}
	// As a client would, dot segments included: "../../B/proxy" must not be left for it to resolve on the gateway's path.
	u = asked.ResolveReference(u)
	if u.User != nil || u.Opaque != "" || !strings.EqualFold(authority(u), authority(endpoint)) {
		return "", false
	}
	rest, ok := strings.CutPrefix(escapedPath(u), endpoint.EscapedPath())
	if !ok || rest != "" && rest[0] != '/' || hasDotSegment(rest) {
		return "", false
	}
	if rest == "" {
		rest = "/"
	}
	raw := prefix + rest
	path, err := url.PathUnescape(raw)
	if err != nil {
		return "", false
	}
	return (&url.URL{
		Path: path, RawPath: raw, RawQuery: u.RawQuery, ForceQuery: u.ForceQuery, Fragment: u.Fragment, RawFragment: u.RawFragment,
	}).String(), true
}

// authority is the host of u with its port.
func authority(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"https": "443", "http": "80"}[u.Scheme]
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// isUpgrade reports whether the request asks to leave HTTP.
func isUpgrade(h http.Header) bool { return upgradeOf(h) != "" }

// upgradeOf is the protocol that a message asks for, or switches to; empty when it does neither.
func upgradeOf(h http.Header) string {
	for _, value := range h["Connection"] {
		for token := range strings.SplitSeq(value, ",") {
			if strings.EqualFold(strings.TrimSpace(token), "upgrade") {
				return h.Get("Upgrade")
			}
		}
	}
	return ""
}

// classifier tells what a proxied request is to the cluster that it goes to.
type classifier struct{ resolver request.RequestInfoResolver }

func newClassifier() classifier {
	return classifier{&request.RequestInfoFactory{
		APIPrefixes:          sets.NewString("api", "apis"),
		GrouplessAPIPrefixes: sets.NewString("api"),
	}}
}

// kind is what a proxied request is.
type kind struct {
	// verb is the Kubernetes verb ("get", "list", "watch", …) of a resource request, or the HTTP method in lower case;
	// "connect" for upgrades; "other" for what no API server knows. Fit for a metric label.
	verb string
	// longRunning requests have no deadline.
	longRunning bool
	// relayed requests are for an application behind the API server, whose answer it passes on.
	relayed bool
}

// knownVerbs bounds the verb label of metrics.
var knownVerbs = sets.New("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection",
	"head", "post", "put", "options", "connect")

// relays are the resources whose subresource proxy leads to an application.
var relays = sets.New("services", "pods", "nodes")

func (c classifier) classify(req *http.Request, onCluster *url.URL) kind {
	info, err := c.resolver.NewRequestInfo(&http.Request{Method: req.Method, URL: onCluster, Header: req.Header})
	relayed := err == nil && info.IsResourceRequest && info.APIGroup == "" && info.Subresource == "proxy" && relays.Has(info.Resource)
	if isUpgrade(req.Header) {
		return kind{verb: "connect", longRunning: true, relayed: relayed}
	}
	if err != nil || !knownVerbs.Has(info.Verb) {
		return kind{verb: "other"}
	}
	k := kind{verb: info.Verb, relayed: relayed}
	if !info.IsResourceRequest {
		return k
	}
	switch info.Subresource {
	case "exec", "attach", "portforward", "proxy":
		k.longRunning = true
	case "log":
		// As the API server reads a boolean (apimachinery, pkg/runtime: Convert_Slice_string_To_bool).
		follow, given := onCluster.Query()["follow"]
		k.longRunning = given && follow[0] != "0" && !strings.EqualFold(follow[0], "false")
	default:
		k.longRunning = info.Verb == "watch"
	}
	return k
}
