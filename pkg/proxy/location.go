// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
)

// errRedirect reports a redirect that leads away from the cluster.
var errRedirect = errors.New("the cluster redirects to another host or path")

// hubRedirectError reports a redirect that the hub's aggregation layer would replace with an error
// of its own.
type hubRedirectError struct {
	code int
	// location is where it leads: the path on the cluster, and the query.
	location string
}

func (e *hubRedirectError) Error() string {
	return fmt.Sprintf("a redirect (%d) to %q cannot be passed on through the hub", e.code, e.location)
}

type throughHubKey struct{}

// WithThroughHub returns a context for a request to a Handler. throughHub reports whether the hub's
// aggregation layer sent the request. It is called only if the answer depends on that. Without it,
// the request counts as one to the gateway's own endpoint.
func WithThroughHub(ctx context.Context, throughHub func() bool) context.Context {
	return context.WithValue(ctx, throughHubKey{}, throughHub)
}

// ThroughHub reports whether the hub's aggregation layer sent the request with this context.
func ThroughHub(ctx context.Context) bool {
	throughHub, ok := ctx.Value(throughHubKey{}).(func() bool)
	return ok && throughHub()
}

// rewriteLocation rewrites a Location that leads to the same managed API server, so that it leads
// there through the gateway. A redirect to anywhere else is an error: the client would follow it
// with its credential for the hub, or would reach another cluster. A redirect through the hub is an
// error, too: because of CVE-2022-3172, the aggregation layer answers with a text that names
// neither the cluster nor the reason.
func (x *exchange) rewriteLocation(resp *http.Response) error {
	location := resp.Header.Get("Location")
	if location == "" {
		return nil
	}
	isRedirect := resp.StatusCode/100 == 3
	u, ok := x.resolveLocation(location, resp.Request.URL)
	switch {
	case !ok && isRedirect:
		return errRedirect
	case !ok:
		return nil
	case isRedirect && ThroughHub(x.ctx):
		return &hubRedirectError{code: resp.StatusCode, location: u.RequestURI()}
	}
	through := *u
	through.RawPath = x.target.prefix + u.EscapedPath()
	through.Path = x.target.prefix + u.Path
	if a := x.application; a != nil {
		// Relative, like the links of its pages: clients reach applications through further
		// proxies, such as kubectl proxy.
		suffix := strings.TrimPrefix(through.String(), through.EscapedPath())
		resp.Header.Set("Location", relativeReference(a.path(), through.EscapedPath())+suffix)
		return nil
	}
	resp.Header.Set("Location", through.String())
	return nil
}

// resolveLocation resolves a Location against requested, the URL that was sent to the cluster. It
// returns the path on the cluster, with query and fragment. ok is false if the Location does not
// lead to the cluster.
func (x *exchange) resolveLocation(location string, requested *url.URL) (on *url.URL, ok bool) {
	endpoint := x.lease.cluster.Endpoint
	u, err := url.Parse(location)
	if err != nil || u.User != nil || u.Opaque != "" {
		return nil, false
	}
	if a := x.application; a != nil && (u.Host == "" || a.hasHost(u)) && strings.HasPrefix(u.Path, "/") {
		// The API server may not know the path of its endpoint, and the application may know the
		// gateway's.
		u = &url.URL{Path: u.Path, RawPath: u.RawPath, RawQuery: u.RawQuery, ForceQuery: u.ForceQuery, Fragment: u.Fragment, RawFragment: u.RawFragment}
		raw := endpoint.EscapedPath() + strings.TrimPrefix(a.pathOf(escapedPath(u)), a.prefix)
		if u.Path, err = url.PathUnescape(raw); err != nil {
			return nil, false
		}
		u.RawPath = raw
	}
	// Resolved here, dot segments included: the client would resolve "../../B/proxy" on the
	// gateway's path.
	u = requested.ResolveReference(u)
	if u.User != nil || u.Opaque != "" || !strings.EqualFold(authority(u), authority(endpoint)) {
		return nil, false
	}
	rest, ok := strings.CutPrefix(escapedPath(u), endpoint.EscapedPath())
	if !ok || rest != "" && rest[0] != '/' || hasDotSegment(rest) {
		return nil, false
	}
	if rest == "" {
		rest = "/"
	}
	path, err := url.PathUnescape(rest)
	if err != nil {
		return nil, false
	}
	return &url.URL{
		Path: path, RawPath: rest, RawQuery: u.RawQuery, ForceQuery: u.ForceQuery, Fragment: u.Fragment, RawFragment: u.RawFragment,
	}, true
}

// authority returns the host of u with its port.
func authority(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"https": "443", "http": "80"}[u.Scheme]
	}
	return net.JoinHostPort(u.Hostname(), port)
}
