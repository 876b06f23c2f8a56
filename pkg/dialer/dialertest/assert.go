// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package dialertest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"testing"

	"github.com/oam-dev/cluster-gateway/pkg/dialer"
)

// dialError dials and returns the error.
func dialError(d dialer.Dialer, ctx context.Context, address string) error {
	c, err := d.DialContext(ctx, "tcp", address)
	if err == nil {
		_ = c.Close()
	}
	return err
}

// readError reads a byte and returns the error.
func readError(c net.Conn) error {
	_, err := c.Read(make([]byte, 1))
	return err
}

// mustBeError checks what every failed dial has to report: the type, the cluster, a stage, the
// address and a cause. If want is not nil, the error must wrap it.
func mustBeError(t testing.TB, s Subject, err error, address string, want error) *dialer.Error {
	t.Helper()
	var de *dialer.Error
	switch {
	case err == nil:
		t.Error("the dial succeeded")
	case !errors.As(err, &de):
		t.Errorf("the error is a %T (%v), want *dialer.Error", err, err)
	case de.Cluster != s.Cluster || de.Address != address || de.Stage == "" || de.Err == nil:
		t.Errorf("the error has cluster %q, address %q, stage %q and cause %v; want cluster %q, address %q, a stage and a cause",
			de.Cluster, de.Address, de.Stage, de.Err, s.Cluster, address)
	case want != nil && !errors.Is(err, want):
		t.Errorf("the error is %v; want one that wraps %v", err, want)
	}
	return de
}

// mustEcho sends p and checks that it comes back.
func mustEcho(t testing.TB, c net.Conn, p []byte) {
	t.Helper()
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(p)
		sent <- err
	}()
	got := make([]byte, len(p))
	if _, err := io.ReadFull(c, got); err != nil {
		t.Errorf("echo: %v", err)
	} else if !bytes.Equal(got, p) {
		t.Error("the echo differs")
	}
	if err := <-sent; err != nil {
		t.Errorf("echo: %v", err)
	}
}

// echo is an endpoint that echoes n bytes of c and then closes it. Because the endpoint closes
// first, the tunneled connections of a test do not linger.
func echo(c net.Conn, n int) {
	_, _ = io.CopyN(c, c, int64(n)) // the client notices
	_ = c.Close()
}

// mustEnd checks that c is at its end.
func mustEnd(t testing.TB, c net.Conn) {
	t.Helper()
	if err := readError(c); err != io.EOF {
		t.Errorf("after the last byte: %v, want io.EOF", err)
	}
}

// noise returns n random bytes, the same ones each time.
func noise(n int) []byte {
	p := make([]byte, n)
	r := rand.New(rand.NewPCG(uint64(n), 1))
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return p
}
