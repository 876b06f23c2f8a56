// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"net/http"
	"net/url"
	"strings"

	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/endpoints/request"
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
	raw := u.EscapedPath()
	rest, ok := strings.CutPrefix(raw, base)
	if !ok {
		return target{}, false
	}
	name, rest, ok := strings.Cut(rest, "/")
	if !ok || name == "" || strings.Contains(name, "%") {
		return target{}, false
	}
	path, ok := strings.CutPrefix(rest, "proxy")
	if !ok || path != "" && path[0] != '/' {
		return target{}, false
	}
	t = target{cluster: name, prefix: raw[:len(raw)-len(path)], rawPath: path}
	if path == "" {
		t.rawPath = "/"
	}
	return t, true
}

// onEndpoint returns the URL of t on a cluster whose API server is at endpoint. rawQuery is kept to the letter: what this
// process cannot parse, the cluster may.
func (t target) onEndpoint(endpoint *url.URL, rawQuery string) *url.URL {
	raw := endpoint.EscapedPath() + t.rawPath
	path, err := url.PathUnescape(raw)
	if err != nil { // cannot be: raw was taken from URLs that were parsed
		path = raw
	}
	return &url.URL{Scheme: endpoint.Scheme, Host: endpoint.Host, Path: path, RawPath: raw, RawQuery: rawQuery}
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

// stripRequest removes what must not reach a managed cluster. extra are further headers that the hub uses to name the caller.
func stripRequest(h http.Header, extra []string) {
	for _, name := range credentialHeaders {
		h.Del(name)
	}
	for _, name := range extra {
		h.Del(name)
	}
	for name := range h {
		for _, prefix := range credentialPrefixes {
			// Header names are canonical when they come from net/http; a handler before this one may have set others.
			if len(name) >= len(prefix) && strings.EqualFold(name[:len(prefix)], prefix) {
				delete(h, name)
			}
		}
	}
	stripBearerProtocols(h)
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
			if protocol = strings.TrimSpace(protocol); protocol != "" && !strings.HasPrefix(protocol, bearerProtocolPrefix) {
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
		"Alt-Svc",                   // leads around the gateway
		"Strict-Transport-Security", // is about a host that the caller does not talk to
		"Audit-Id",                  // the gateway's own is the one to look for; the cluster was sent the same
	} {
		h.Del(name)
	}
}

// rewriteLocation makes a redirect to the managed API server one that leads through the gateway.
func rewriteLocation(h http.Header, endpoint *url.URL, prefix string) {
	location := h.Get("Location")
	if location == "" {
		return
	}
	u, err := url.Parse(location)
	if err != nil || u.Host != "" && u.Host != endpoint.Host || !strings.HasPrefix(u.EscapedPath(), "/") {
		return
	}
	raw := prefix + "/" + strings.TrimPrefix(strings.TrimPrefix(u.EscapedPath(), endpoint.EscapedPath()), "/")
	path, err := url.PathUnescape(raw)
	if err != nil {
		return
	}
	h.Set("Location", (&url.URL{Path: path, RawPath: raw, RawQuery: u.RawQuery, Fragment: u.Fragment}).String())
}

// isUpgrade reports whether the request asks to leave HTTP.
func isUpgrade(h http.Header) bool {
	if h.Get("Upgrade") == "" {
		return false
	}
	for _, value := range h["Connection"] {
		for token := range strings.SplitSeq(value, ",") {
			if strings.EqualFold(strings.TrimSpace(token), "upgrade") {
				return true
			}
		}
	}
	return false
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
}

// knownVerbs bounds the verb label of metrics.
var knownVerbs = sets.New("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection",
	"head", "post", "put", "options", "connect")

func (c classifier) classify(req *http.Request, onCluster *url.URL) kind {
	if isUpgrade(req.Header) {
		return kind{verb: "connect", longRunning: true}
	}
	info, err := c.resolver.NewRequestInfo(&http.Request{Method: req.Method, URL: onCluster, Header: req.Header})
	if err != nil || !knownVerbs.Has(info.Verb) {
		return kind{verb: "other"}
	}
	k := kind{verb: info.Verb}
	if !info.IsResourceRequest {
		return k
	}
	switch info.Subresource {
	case "exec", "attach", "portforward", "proxy":
		k.longRunning = true
	case "log":
		follow := onCluster.Query().Get("follow")
		k.longRunning = follow != "" && follow != "false" && follow != "0"
	default:
		k.longRunning = info.Verb == "watch"
	}
	return k
}
