// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package dialertest

import (
	"errors"
	"fmt"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/oam-dev/cluster-gateway/pkg/dialer"
)

// endpoint stands for the API server.
type endpoint struct {
	net.Listener
}

func newEndpoint(t *testing.T) *endpoint { return &endpoint{Listen(t)} }

func (e *endpoint) address() string { return e.Addr().String() }

// pair dials e and returns both ends: c1 is the dialer's and c2 the endpoint's.
func (e *endpoint) pair(t testing.TB, d dialer.Dialer) (c1, c2 net.Conn) {
	t.Helper()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := e.Accept()
		if err != nil {
			t.Errorf("accept: %v", err)
		}
		accepted <- c
	}()
	c1, err := d.DialContext(t.Context(), "tcp", e.address())
	if err != nil {
		_ = e.Close()
		<-accepted
		t.Fatalf("dial: %v", err)
	}
	c2 = <-accepted
	t.Cleanup(func() {
		_ = c1.Close() // a test may have closed them
		_ = c2.Close()
	})
	return c1, c2
}

// open returns a new Dialer of the subject, which is closed at the end of the test.
func open(t testing.TB, s Subject, address string) dialer.Dialer {
	t.Helper()
	d := s.New(t, address)
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("Close of the dialer: %v", err)
		}
	})
	return d
}

// Unanswering returns an address that neither accepts nor refuses connections: a listener whose
// queue is full.
func Unanswering(t testing.TB) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if err := errors.Join(
		syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}),
		syscall.Listen(fd, 0),
	); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprintf("127.0.0.1:%d", name.(*syscall.SockaddrInet4).Port)
	for range 3 {
		c, err := net.DialTimeout("tcp", address, 200*time.Millisecond)
		if err != nil {
			return address
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	t.Skip("this system accepts connections beyond a listener's queue")
	return ""
}

// Listen listens on a free port of localhost. The listener is closed at the end of the test.
func Listen(t testing.TB) net.Listener {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = lis.Close() }) // a server of the test may have closed it
	return lis
}
