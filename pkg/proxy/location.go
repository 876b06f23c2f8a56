// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"errors"
	"net"
	"net/http"
	"net/url"
	"strings"
)

// errRedirect reports a redirect that leads away from the cluster.
var errRedirect = errors.New("the cluster redirects to another host or path")

// rewriteLocation rewrites a Location that leads to the same managed API server, so that it leads
// there through the gateway. A redirect to anywhere else is an error: the client would follow it
// with its credential for the hub, or would reach another cluster. (Because of CVE-2022-3172, the
// hub's aggregation layer follows no redirects at all.)
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

// locationThroughGateway resolves a Location against requested, the URL that was sent to the
// cluster.
func locationThroughGateway(location string, requested, endpoint *url.URL, prefix string) (string, bool) {
	u, err := url.Parse(location)
	if err != nil {
		return "", false
	}
	// Resolved here, dot segments included: the client would resolve "../../B/proxy" on the
	// gateway's path.
	u = requested.ResolveReference(u)
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

// authority returns the host of u with its port.
func authority(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"https": "443", "http": "80"}[u.Scheme]
	}
	return net.JoinHostPort(u.Hostname(), port)
}
