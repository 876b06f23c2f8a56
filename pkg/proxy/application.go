// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"net/http"
	"net/url"
	"strings"
)

// application is a web application behind the proxy subresource of a Pod, a Service or a Node, as
// seen by one request. The cluster's API server serves it below a path of its own, and rewrites
// rooted links in HTML so that they begin with that path. It does not know the gateway's path in
// front of it.
//
// All applications of all clusters have one origin: the gateway's, or the hub's. A browser protects
// none of them from another.
type application struct {
	// endpoint is the URL of the cluster's API server.
	endpoint *url.URL
	// prefix is the escaped path of the cluster on the gateway, up to and including "/proxy".
	prefix string
	// root is the escaped path of the application on the cluster, up to and including "/proxy".
	root string
	// page is what follows root in the path of the request. It is empty or begins with a slash.
	page string
}

// newApplication returns the application of a relayed request. ok is false if the path is written
// in a way that does not show where the application begins.
func newApplication(endpoint *url.URL, t target) (a application, ok bool) {
	// "/api/v1/namespaces/NAMESPACE/services/NAME/proxy" or "/api/v1/nodes/NAME/proxy"
	segments := 5
	if strings.HasPrefix(t.rawPath, "/api/v1/namespaces/") {
		segments = 7
	}
	root, page := cutSegments(t.rawPath, segments)
	if !strings.HasPrefix(root, "/api/v1/") || !strings.HasSuffix(root, "/proxy") {
		return application{}, false
	}
	return application{endpoint: endpoint, prefix: t.prefix, root: root, page: page}, true
}

// cutSegments returns the first n segments of a rooted path, and the rest. The first is empty if
// there are fewer.
func cutSegments(path string, n int) (first, rest string) {
	for i := range len(path) {
		if path[i] != '/' {
			continue
		}
		if n == 0 {
			return path[:i], path[i:]
		}
		n--
	}
	if n > 0 {
		return "", path
	}
	return path, ""
}

// cutPath removes a path from the beginning of another one. Both are escaped, perhaps in different
// ways.
func cutPath(path, prefix string) (rest string, ok bool) {
	first, rest := cutSegments(path, strings.Count(prefix, "/"))
	if first == prefix {
		return rest, true
	}
	a, errA := url.PathUnescape(first)
	b, errB := url.PathUnescape(prefix)
	return rest, first != "" && errA == nil && errB == nil && a == b
}

// path returns the escaped path on the gateway of the requested page.
func (a *application) path() string { return a.prefix + a.root + a.page }

// pathOf returns the escaped path on the gateway of a rooted path that the API server or the
// application wrote. The API server prepends the application's path to most paths, even if the
// application knows where it is served and has written the whole path.
func (a *application) pathOf(rooted string) string {
	for _, known := range []string{a.endpoint.EscapedPath() + a.root, a.root, a.prefix + a.root} {
		if rest, ok := cutPath(rooted, known); ok {
			rooted = rest
		}
	}
	return a.prefix + a.root + rooted
}

// hasHost reports whether a URL with a host leads to the API server. Applications make such URLs
// from the Host header.
func (a *application) hasHost(u *url.URL) bool {
	return strings.EqualFold(u.Host, a.endpoint.Host) || strings.EqualFold(authority(u), authority(a.endpoint))
}

// relativeReference returns a reference that leads from one rooted, escaped path to another.
// Clients can follow it however many proxies, each with a path of its own, are in front of the
// gateway.
func relativeReference(from, to string) string {
	dir := from[:strings.LastIndexByte(from, '/')+1]
	common := 0
	for i := 0; i < len(dir) && i < len(to) && dir[i] == to[i]; i++ {
		if dir[i] == '/' {
			common = i + 1
		}
	}
	ref := strings.Repeat("../", strings.Count(dir[common:], "/")) + to[common:]
	first, _, _ := strings.Cut(ref, "/")
	if first == "" || strings.Contains(first, ":") { // would be read as a rooted path, or as a scheme
		ref = "./" + ref
	}
	return ref
}

// limitEncodings lets the application compress its answer only in ways that the API server and the
// gateway can read, because both rewrite links.
func limitEncodings(h http.Header) {
	const name = "Accept-Encoding"
	accepted := strings.Join(h.Values(name), ",")
	if accepted == "" {
		return
	}
	h.Set(name, "identity")
	for part := range strings.SplitSeq(accepted, ",") {
		coding, quality, _ := strings.Cut(part, ";")
		refused := strings.TrimRight(strings.ReplaceAll(quality, " ", ""), "0.") == "q="
		if strings.EqualFold(strings.TrimSpace(coding), "gzip") && !refused {
			h.Set(name, "gzip")
		}
	}
}
