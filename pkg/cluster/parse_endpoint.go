// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// defaultServerName is the name by which Pods reach their API server. The certificate of every API
// server is valid for it.
const defaultServerName = "kubernetes.default.svc"

// CheckEndpoint validates an endpoint as in a Secret. The error does not contain any part of it.
func CheckEndpoint(endpoint string) error {
	p := &parser{secret: &corev1.Secret{Data: map[string][]byte{v1alpha1.SecretKeyEndpoint: []byte(endpoint)}}, cluster: &Cluster{Route: RouteDirect}}
	p.endpoint()
	if len(p.cluster.faults) > 0 {
		return errors.New(p.cluster.faults[0].Problem)
	}
	return nil
}

// CheckAddress validates the address host:port of a server.
func CheckAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil || !validHost(host) {
		return errors.New("it must be host:port")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return errors.New("its port must be between 1 and 65535")
	}
	return nil
}

// endpoint parses the address of the API server. With a tunnel there is a default, because an agent
// can always reach the API server by the same name.
func (p *parser) endpoint() {
	raw, ok := p.text(v1alpha1.SecretKeyEndpoint, maxURL)
	if !ok {
		if !p.given(v1alpha1.SecretKeyEndpoint) {
			p.defaultEndpoint()
		}
		return
	}
	u := p.parseURL(v1alpha1.SecretKeyEndpoint, raw, "https://host:port")
	if u == nil {
		return
	}
	if !strings.EqualFold(u.Scheme, "https") {
		p.fault(v1alpha1.SecretKeyEndpoint, "the scheme is %s; only https is allowed", quote(u.Scheme))
		return
	}
	if u.User != nil {
		p.fault(v1alpha1.SecretKeyEndpoint, "must not contain a user or password; use the key for the credential")
		return
	}
	if u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.Contains(raw, "#") {
		p.fault(v1alpha1.SecretKeyEndpoint, "must not have a query or a fragment")
		return
	}
	host, problem := hostPort(u, "443")
	if problem != "" {
		p.fault(v1alpha1.SecretKeyEndpoint, "%s", problem)
		return
	}
	prefix := strings.TrimRight(u.EscapedPath(), "/")
	path, err := url.PathUnescape(prefix)
	if err != nil || !cleanPath(prefix) {
		p.fault(v1alpha1.SecretKeyEndpoint, "the path must not have empty, \".\" or \"..\" segments")
		return
	}
	p.cluster.Endpoint = &url.URL{Scheme: "https", Host: host, Path: path, RawPath: rawPath(path, prefix)}
	p.serverNameDefault = strings.TrimSuffix(u.Hostname(), ".")
}

// defaultEndpoint sets the endpoint if the Secret does not contain one.
func (p *parser) defaultEndpoint() {
	if p.cluster.Route != RouteTunnel {
		p.fault(v1alpha1.SecretKeyEndpoint, "is missing; it must be the address of the API server, https://host:port")
		return
	}
	p.serverNameDefault = defaultServerName
	host := defaultServerName
	if p.opts.TunnelMode == TunnelExternal {
		// The stock server selects the agent by the host that is dialed.
		host = p.secret.Name
		if !validHost(host) {
			p.fault(v1alpha1.SecretKeyEndpoint, "is missing, and the name of the cluster is not a valid host that could replace it")
			return
		}
	}
	p.cluster.Endpoint = &url.URL{Scheme: "https", Host: net.JoinHostPort(host, "443")}
}

// serverName parses the name to verify.
func (p *parser) serverName() {
	p.cluster.ServerName = p.serverNameDefault
	raw, ok := p.text(v1alpha1.SecretKeyServerName, maxServerName)
	if !ok {
		return
	}
	if !validHost(raw) {
		p.fault(v1alpha1.SecretKeyServerName, "%s is neither a DNS name nor an IP address", quote(raw))
		return
	}
	p.cluster.ServerName = strings.TrimSuffix(raw, ".")
}

// proxyURL parses the proxy of a direct route. It is ignored with a tunnel.
func (p *parser) proxyURL() {
	if p.cluster.Route == RouteTunnel {
		return
	}
	raw, ok := p.text(v1alpha1.SecretKeyProxyURL, maxURL)
	if !ok {
		return
	}
	u := p.parseURL(v1alpha1.SecretKeyProxyURL, raw, "http://host:port")
	if u == nil {
		return
	}
	defaults := map[string]string{"http": "80", "https": "443", "socks5": "1080", "socks5h": "1080"}
	port, ok := defaults[u.Scheme]
	if !ok {
		p.fault(v1alpha1.SecretKeyProxyURL, "the scheme must be http, https, socks5 or socks5h")
		return
	}
	if u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.Contains(raw, "#") || strings.Trim(u.Path, "/") != "" {
		p.fault(v1alpha1.SecretKeyProxyURL, "must not have a path, a query or a fragment")
		return
	}
	host, problem := hostPort(u, port)
	if problem != "" {
		p.fault(v1alpha1.SecretKeyProxyURL, "%s", problem)
		return
	}
	p.cluster.ProxyURL = &url.URL{Scheme: u.Scheme, User: u.User, Host: host}
}

// parseURL returns nil after a fault. Its messages do not contain any part of the URL: a URL that
// cannot be parsed may contain a password anywhere.
func (p *parser) parseURL(key, raw, form string) *url.URL {
	u, err := url.Parse(raw)
	switch {
	case err != nil && !strings.Contains(raw, "://"):
		p.fault(key, "has no scheme; it must be of the form %s", form)
	case err != nil:
		p.fault(key, "cannot be parsed as a URL; it must be of the form %s", form)
	case u.Scheme == "" || u.Opaque != "":
		// url.Parse takes host:port without a scheme for a scheme and an opaque part.
		p.fault(key, "has no scheme; it must be of the form %s", form)
	case u.Host == "":
		p.fault(key, "has no host; it must be of the form %s", form)
	default:
		return u
	}
	return nil
}

// hostPort returns the host and port of the URL, or a problem.
func hostPort(u *url.URL, defaultPort string) (host, problem string) {
	if !validHost(u.Hostname()) {
		return "", "the host is neither a DNS name nor an IP address"
	}
	port := u.Port()
	if port == "" {
		port = defaultPort
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", "the port is not between 1 and 65535"
	}
	return net.JoinHostPort(u.Hostname(), port), ""
}

// validHost reports whether the host is an IP address without a zone or a DNS name. DNS names with
// underscores are accepted because they are in use.
func validHost(host string) bool {
	if addr, err := netip.ParseAddr(host); err == nil {
		return addr.Zone() == ""
	}
	host = strings.TrimSuffix(host, ".")
	if host == "" || len(host) > maxServerName {
		return false
	}
	for label := range strings.SplitSeq(host, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, r := range label {
			if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_' {
				return false
			}
		}
	}
	return true
}

// cleanPath reports whether another path can be appended to an escaped path without a trailing
// slash, and means the same.
func cleanPath(prefix string) bool {
	if prefix == "" {
		return true
	}
	for segment := range strings.SplitSeq(strings.TrimPrefix(prefix, "/"), "/") {
		plain, err := url.PathUnescape(segment)
		if err != nil || plain == "" || plain == "." || plain == ".." || strings.ContainsFunc(plain, isControl) {
			return false
		}
	}
	return true
}

// rawPath returns the RawPath of a url.URL. It is empty if it equals the default encoding of the
// path.
func rawPath(path, escaped string) string {
	if (&url.URL{Path: path}).EscapedPath() == escaped {
		return ""
	}
	return escaped
}
