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
)

// maxConnectHeader bounds the header of a proxy's answer to CONNECT, in bytes.
const maxConnectHeader = 64 << 10

// connectProxy dials through an HTTP proxy with the CONNECT method (RFC 9110, 9.3.6).
type connectProxy struct {
	url     *url.URL
	forward *net.Dialer
}

func (p *connectProxy) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := p.dialProxy(ctx, network)
	if err != nil {
		return nil, fmt.Errorf("proxy %s: %w", p.url.Host, err)
	}
	// ctx bounds the exchange with the proxy, and not the connection afterwards.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	connected, err := p.connect(conn, address)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = conn.Close() // the error that matters is err
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return nil, fmt.Errorf("proxy %s: CONNECT %s: %w", p.url.Host, address, err)
	}
	return connected, nil
}

func (p *connectProxy) dialProxy(ctx context.Context, network string) (net.Conn, error) {
	if p.url.Scheme == "http" {
		return p.forward.DialContext(ctx, network, hostPort(p.url, "80"))
	}
	d := tls.Dialer{NetDialer: p.forward, Config: &tls.Config{ServerName: p.url.Hostname(), MinVersion: tls.VersionTLS12}}
	return d.DialContext(ctx, network, hostPort(p.url, "443"))
}

// connect asks the proxy at the other end of conn to connect to address.
func (p *connectProxy) connect(conn net.Conn, address string) (net.Conn, error) {
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: address}, Host: address, Header: http.Header{}}
	if u := p.url.User; u != nil {
		password, _ := u.Password()
		basic := base64.StdEncoding.EncodeToString([]byte(u.Username() + ":" + password))
		req.Header.Set("Proxy-Authorization", "Basic "+basic)
	}
	if err := req.Write(conn); err != nil {
		return nil, err
	}
	// The limit is for the header. What the reader takes beyond the header is at most its own buffer,
	// and prefixedConn returns it.
	br := bufio.NewReader(io.LimitReader(conn, maxConnectHeader))
	resp, err := http.ReadResponse(br, req) //nolint:bodyclose // an answer to CONNECT has no body: the connection follows
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 != 2 { // RFC 9110, 9.3.6: any 2xx is success
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

// prefixedConn is a connection whose first bytes have already been read.
type prefixedConn struct {
	net.Conn
	mu     sync.Mutex
	prefix []byte
}

// Read implements net.Conn.
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
