// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package dialer

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"time"

	"golang.org/x/net/proxy"
)

// directKeepAlive is the interval of TCP keepalive probes on direct connections. The kernel gives
// up after nine unanswered probes by default, so a peer that has vanished is noticed after two and
// a half minutes.
const directKeepAlive = 15 * time.Second

// NewDirect returns a Dialer that connects to the API server of cluster from this process. If
// proxyURL is not nil, it connects through that proxy: with CONNECT for the schemes http and https,
// or with SOCKS5 for socks5 and socks5h. With both SOCKS5 schemes the proxy resolves the name of
// the server.
func NewDirect(cluster string, proxyURL *url.URL) (Dialer, error) {
	forward := &net.Dialer{KeepAlive: directKeepAlive}
	if proxyURL == nil {
		return New(cluster, forward.DialContext), nil
	}
	switch proxyURL.Scheme {
	case "http", "https":
		p := &connectProxy{url: proxyURL, forward: forward}
		return New(cluster, p.dial), nil
	case "socks5", "socks5h":
		var auth *proxy.Auth
		if u := proxyURL.User; u != nil {
			password, _ := u.Password()
			auth = &proxy.Auth{User: u.Username(), Password: password}
		}
		socks, err := proxy.SOCKS5("tcp", hostPort(proxyURL, "1080"), auth, forward)
		if err != nil {
			return nil, fmt.Errorf("SOCKS5 proxy %s: %w", proxyURL.Host, err)
		}
		withContext, ok := socks.(proxy.ContextDialer)
		if !ok {
			return nil, fmt.Errorf("SOCKS5 proxy %s: the client does not support cancellation", proxyURL.Host)
		}
		return New(cluster, func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := withContext.DialContext(ctx, network, address)
			if err != nil {
				return nil, fmt.Errorf("through the proxy %s: %w", proxyURL.Host, err)
			}
			return conn, nil
		}), nil
	default:
		return nil, fmt.Errorf("unsupported proxy scheme %q: must be http, https, socks5 or socks5h", proxyURL.Scheme)
	}
}

func hostPort(u *url.URL, defaultPort string) string {
	port := u.Port()
	if port == "" {
		port = defaultPort
	}
	return net.JoinHostPort(u.Hostname(), port)
}
