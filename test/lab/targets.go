// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
)

// targets are the servers that port-forward connects to. They are part of the lab's own process,
// but listen where the cluster runs.
type targets struct {
	echo net.Listener
	http net.Listener
	web  *http.Server

	mu      sync.Mutex
	bastion net.Listener          // nil until they are needed
	conns   map[net.Conn]struct{} // nil once closed
	wg      sync.WaitGroup
}

func (c *Cluster) startTargets() error {
	t := &targets{conns: map[net.Conn]struct{}{}}
	c.targets = t // before anything can fail: stopping the cluster closes it
	for _, listener := range []*net.Listener{&t.echo, &t.http} {
		var err error
		if *listener, err = c.lab.ports.listen(c.ns); err != nil {
			return fmt.Errorf("listen for port-forward: %w", err)
		}
	}
	greeting := "hello from " + c.opts.Name + "\n"
	t.web = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, greeting) // a disconnected client is not an error
	})}
	t.wg.Go(t.serveEcho)
	t.wg.Go(func() { _ = t.web.Serve(t.http) }) // always an error, because the listener was closed
	return nil
}

func (t *targets) serveEcho() {
	for {
		conn, err := t.echo.Accept()
		if err != nil {
			return
		}
		if !t.add(conn) {
			conn.Close()
			return
		}
		t.wg.Go(func() {
			defer t.remove(conn)
			_, _ = io.Copy(conn, conn)
		})
	}
}

func (t *targets) add(conn net.Conn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.conns == nil {
		return false
	}
	t.conns[conn] = struct{}{}
	return true
}

func (t *targets) remove(conn net.Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.conns, conn)
	conn.Close()
}

func (t *targets) close() error {
	var errs []error
	if t.echo != nil {
		errs = append(errs, t.echo.Close())
	}
	if t.web != nil {
		errs = append(errs, t.web.Close())
	} else if t.http != nil {
		errs = append(errs, t.http.Close())
	}
	t.mu.Lock()
	if t.bastion != nil {
		errs = append(errs, t.bastion.Close())
	}
	for conn := range t.conns {
		conn.Close()
	}
	t.conns = nil
	t.mu.Unlock()
	t.wg.Wait()
	return errors.Join(errs...)
}

func (t *targets) echoPort() int { return t.echo.Addr().(*net.TCPAddr).Port }

func (t *targets) httpPort() int { return t.http.Addr().(*net.TCPAddr).Port }

// EchoAddr returns the address, as the cluster sees it, of the echo server that port-forward to a
// Pod connects to, for any port except 80.
func (c *Cluster) EchoAddr() string { return c.targets.echo.Addr().String() }

// HTTPAddr returns the address, as the cluster sees it, of the server that port-forward to port 80
// of a Pod connects to. It responds with a greeting that contains the cluster's name.
func (c *Cluster) HTTPAddr() string { return c.targets.http.Addr().String() }
