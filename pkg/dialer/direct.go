// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package dialer

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"golang.org/x/net/proxy"
)

// directKeepAlive is the interval of TCP keepalive probes on direct connections. With the kernel's default of nine
// probes that go unanswered, a peer that vanished is noticed well before an idle timeout would.
const directKeepAlive = 15 * time.Second

// NewDirect returns a Dialer that connects to the API server of cluster itself. proxyURL, when not nil, is an HTTP(S) proxy
// that is asked to CONNECT, or a SOCKS5 proxy (socks5h is the same: the proxy resolves the name).
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
			return nil, fmt.Errorf("SOCKS5 proxy %s: the client cannot be cancelled", proxyURL.Host)
		}
		return New(cluster, func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := withContext.DialContext(ctx, network, address)
			if err != nil {
				return nil, fmt.Errorf("through the proxy %s: %w", proxyURL.Host, err)
			}
			return conn, nil
		}), nil
	default:
		return nil, fmt.Errorf("proxy scheme %q is not supported: use http, https, socks5 or socks5h", proxyURL.Scheme)
	}
}

// connectProxy dials through an HTTP proxy with the CONNECT method (RFC 9110, 9.3.6).
type connectProxy struct {
	url     *url.URL
	forward *net.Dialer
}

func (p *connectProxy) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := p.connect(ctx, network)
	if err != nil {
		return nil, fmt.Errorf("proxy %s: %w", p.url.Host, err)
	}
	// The exchange below is bounded by ctx, and the connection afterwards is not.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	tunnelled, err := p.tunnel(conn, address)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = conn.Close() // the error that matters is the one already at hand
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return nil, fmt.Errorf("proxy %s: CONNECT %s: %w", p.url.Host, address, err)
	}
	return tunnelled, nil
}

func (p *connectProxy) connect(ctx context.Context, network string) (net.Conn, error) {
	if p.url.Scheme == "http" {
		return p.forward.DialContext(ctx, network, hostPort(p.url, "80"))
	}
	d := tls.Dialer{NetDialer: p.forward, Config: &tls.Config{ServerName: p.url.Hostname(), MinVersion: tls.VersionTLS12}}
	return d.DialContext(ctx, network, hostPort(p.url, "443"))
}

func (p *connectProxy) tunnel(conn net.Conn, address string) (net.Conn, error) {
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: address}, Host: address, Header: http.Header{}}
	if u := p.url.User; u != nil {
		password, _ := u.Password()
		basic := base64.StdEncoding.EncodeToString([]byte(u.Username() + ":" + password))
		req.Header.Set("Proxy-Authorization", "Basic "+basic)
	}
	if err := req.Write(conn); err != nil {
		return nil, err
	}
	// The limit is on the header; what the reader takes beyond it is at most the reader's own buffer, and is not lost.
	br := bufio.NewReader(io.LimitReader(conn, 64<<10))
	resp, err := http.ReadResponse(br, req) //nolint:bodyclose // the answer to a CONNECT has no body: what follows is the connection
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 != 2 { // RFC 9110, 9.3.6: any 2xx
		return nil, fmt.Errorf("the proxy answered %s", resp.Status)
	}
	if br.Buffered() == 0 {
		return conn, nil
	}
	early, err := br.Peek(br.Buffered())
	if err != nil {
		return nil, err
	}
	return &prefixedConn{Conn: conn, prefix: early}, nil
}

// prefixedConn is a connection some of whose bytes have been read already.
type prefixedConn struct {
	net.Conn
	mu     sync.Mutex
	prefix []byte
}

func (c *prefixedConn) Read(p []byte) (int, error) {
	c.mu.Lock()
	if len(c.prefix) > 0 {
		defer c.mu.Unlock()
		n := copy(p, c.prefix)
		c.prefix = c.prefix[n:]
		return n, nil
	}
	c.mu.Unlock()
	return c.Conn.Read(p)
}

func hostPort(u *url.URL, defaultPort string) string {
	port := u.Port()
	if port == "" {
		port = defaultPort
	}
	return net.JoinHostPort(u.Hostname(), port)
}
