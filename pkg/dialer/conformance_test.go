// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package dialer_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/oam-dev/cluster-gateway/pkg/dialer"
	"github.com/oam-dev/cluster-gateway/pkg/dialer/dialertest"
)

const cluster = "east"

func TestMain(m *testing.M) { dialertest.Main(m) }

func TestDirect(t *testing.T) {
	dialertest.TestDialer(t, dialertest.Subject{Cluster: cluster, New: func(t testing.TB, _ string) dialer.Dialer {
		return direct(t, nil)
	}})
}

func TestDirectThroughProxies(t *testing.T) {
	user := url.UserPassword("gateway", "pass:word")
	for scheme, serve := range map[string]func(net.Conn) error{"http": serveConnect, "socks5": serveSOCKS5, "socks5h": serveSOCKS5} {
		t.Run(scheme, func(t *testing.T) {
			proxy := startProxy(t, serve)
			dialertest.TestDialer(t, dialertest.Subject{Cluster: cluster, New: func(t testing.TB, _ string) dialer.Dialer {
				return direct(t, &url.URL{Scheme: scheme, Host: proxy, User: user})
			}})
		})
	}
}

func direct(t testing.TB, proxy *url.URL) dialer.Dialer {
	t.Helper()
	d, err := dialer.NewDirect(cluster, proxy)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// (The conformance tests are not parallel: each checks for leaked goroutines.)
func TestKonnectivity(t *testing.T) {
	ca := dialertest.NewCA(t, "konnectivity")
	for name, where := range map[string]func(t *testing.T) (dialer.KonnectivityConfig, net.Listener, []grpc.ServerOption){
		"mTLS": func(t *testing.T) (dialer.KonnectivityConfig, net.Listener, []grpc.ServerOption) {
			lis := dialertest.Listen(t)
			return dialer.KonnectivityConfig{
				Servers: []string{lis.Addr().String()},
				TLS:     credentials.NewTLS(ca.ClientTLS(ca.Client(t, "gateway"))),
			}, lis, []grpc.ServerOption{grpc.Creds(credentials.NewTLS(ca.ServerTLS(t)))}
		},
		"Unix": func(t *testing.T) (dialer.KonnectivityConfig, net.Listener, []grpc.ServerOption) {
			path := filepath.Join(t.TempDir(), "s")
			lis, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			return dialer.KonnectivityConfig{Servers: []string{"unix://" + path}}, lis, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, lis, opts := where(t)
			server := dialertest.StartServer(t, ca.ServerTLS(t), map[net.Listener][]grpc.ServerOption{lis: opts})
			dialertest.StartAgent(t, dialertest.AgentConfig{
				Address: server.AgentAddress, CA: ca, Pair: ca.Client(t, "agent"), ID: "a", Identifiers: "host=127.0.0.1",
			})
			<-server.AgentConnected
			k := newKonnectivity(t, cfg)
			dialertest.TestDialer(t, dialertest.Subject{Cluster: cluster, Tunneled: true, New: func(_ testing.TB, address string) dialer.Dialer {
				return k.Dialer(cluster, address)
			}})
		})
	}
}

func newKonnectivity(t testing.TB, cfg dialer.KonnectivityConfig) *dialer.Konnectivity {
	t.Helper()
	k, err := dialer.NewKonnectivity(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return k
}

// startProxy starts a server that calls serve for each connection, and returns its address.
func startProxy(t *testing.T, serve func(net.Conn) error) (address string) {
	t.Helper()
	lis := dialertest.Listen(t)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Add(1)
	go func() {
		defer running.Done()
		for {
			c, err := lis.Accept()
			if err != nil {
				return
			}
			running.Add(1)
			go func() {
				defer running.Done()
				defer context.AfterFunc(ctx, func() { _ = c.Close() })()
				_ = serve(c) // the client sees the error
				_ = c.Close()
			}()
		}
	}()
	t.Cleanup(func() {
		_ = lis.Close()
		cancel()
		running.Wait()
	})
	return lis.Addr().String()
}

func serveConnect(c net.Conn) error {
	br := bufio.NewReader(c)
	req, err := http.ReadRequest(br)
	if err != nil {
		return err
	}
	if user, password, ok := proxyAuth(req); req.Method != http.MethodConnect || !ok || user != "gateway" || password != "pass:word" {
		_, err := io.WriteString(c, "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
		return err
	}
	return relay(c, br, req.Host, func(err error) error {
		answer := "HTTP/1.1 200 OK\r\n\r\n"
		if err != nil {
			answer = "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"
		}
		_, err = io.WriteString(c, answer)
		return err
	})
}

func proxyAuth(req *http.Request) (string, string, bool) {
	req.Header.Set("Authorization", req.Header.Get("Proxy-Authorization"))
	return req.BasicAuth()
}

// serveSOCKS5 serves one connection as a SOCKS5 proxy with password authentication (RFC 1928, RFC
// 1929).
func serveSOCKS5(c net.Conn) error {
	br := bufio.NewReader(c)
	methods, err := counted(br, 1)
	if err != nil {
		return err
	}
	_ = methods
	if _, err := c.Write([]byte{5, 2}); err != nil {
		return err
	}
	user, err := counted(br, 1)
	if err != nil {
		return err
	}
	password, err := counted(br, 0)
	if err != nil {
		return err
	}
	if string(user) != "gateway" || string(password) != "pass:word" {
		_, err := c.Write([]byte{1, 1})
		return err
	}
	if _, err := c.Write([]byte{1, 0}); err != nil {
		return err
	}
	head := make([]byte, 4)
	if _, err := io.ReadFull(br, head); err != nil {
		return err
	}
	var host string
	switch head[3] {
	case 1:
		ip := make(net.IP, 4)
		_, err = io.ReadFull(br, ip)
		host = ip.String()
	case 3:
		var name []byte
		name, err = counted(br, 0)
		host = string(name)
	default:
		err = fmt.Errorf("address type %d", head[3])
	}
	var port uint16
	if err = errors.Join(err, binary.Read(br, binary.BigEndian, &port)); err != nil {
		return err
	}
	return relay(c, br, net.JoinHostPort(host, strconv.Itoa(int(port))), func(err error) error {
		code := byte(0)
		if err != nil {
			code = 5
		}
		_, err = c.Write([]byte{5, code, 0, 1, 0, 0, 0, 0, 0, 0})
		return err
	})
}

// counted reads skip bytes, a length of one byte, and that many bytes.
func counted(br *bufio.Reader, skip int) ([]byte, error) {
	head := make([]byte, skip+1)
	if _, err := io.ReadFull(br, head); err != nil {
		return nil, err
	}
	p := make([]byte, head[skip])
	_, err := io.ReadFull(br, p)
	return p, err
}

// relay dials address, calls answer with the outcome, and copies both ways until one side ends. If
// the client disconnects, the dial is canceled.
func relay(c net.Conn, br *bufio.Reader, address string, answer func(error) error) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		defer cancel()
		_, _ = br.Peek(1) // returns at the client's first byte or when the client disconnects
	}()
	dialed := make(chan struct{})
	var far net.Conn
	var err error
	go func() {
		defer close(dialed)
		far, err = (&net.Dialer{}).DialContext(ctx, "tcp", address)
	}()
	<-dialed
	if err := errors.Join(err, answer(err)); err != nil {
		_ = c.Close()
		<-gone
		if far != nil {
			_ = far.Close()
		}
		return err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(c, far)
		_ = c.Close()
	}()
	<-gone
	_, err = io.Copy(far, br)
	_ = far.Close()
	<-done
	return err
}
