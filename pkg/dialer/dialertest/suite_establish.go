// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package dialertest

import (
	"context"
	"net"
	"testing"

	"github.com/oam-dev/cluster-gateway/pkg/dialer"
)

// Tests of what the suite promises about DialContext.

func testContextEstablishmentOnly(t *testing.T, s Subject) {
	e := newEndpoint(t)
	d := open(t, s, e.address())
	const message, times = "after the context", 3
	go func() {
		if c, err := e.Accept(); err == nil {
			echo(c, times*len(message))
		}
	}()
	ctx, cancel := context.WithCancel(t.Context())
	c, err := d.DialContext(ctx, "tcp", e.address())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	cancel()
	for range times {
		mustEcho(t, c, []byte(message))
	}
	mustEnd(t, c)
}

func testContextEndedBefore(t *testing.T, s Subject) {
	e := newEndpoint(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := open(t, s, e.address()).DialContext(ctx, "tcp", e.address())
	mustBeError(t, s, err, e.address(), context.Canceled)
}

func testContextEndsDuringDial(t *testing.T, s Subject) {
	address := Unanswering(t)
	d := open(t, s, address)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	observed := NewObservedContext(ctx)
	failed := make(chan error, 1)
	go func() { failed <- dialError(d, observed, address) }()
	Within(t, observed.Observed(), "the start of the dial")
	cancel()
	mustBeError(t, s, Within(t, failed, "the canceled dial"), address, context.Canceled)
}

func testRefused(t *testing.T, s Subject) {
	e := newEndpoint(t)
	address := e.address()
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	err := dialError(open(t, s, address), t.Context(), address)
	if de := mustBeError(t, s, err, address, nil); de != nil && de.Stage != dialer.StageEndpoint {
		t.Errorf("stage %q, want %q", de.Stage, dialer.StageEndpoint)
	}
}

func testOtherAddress(t *testing.T, s Subject) {
	if !s.Tunneled {
		t.Skip("a direct dialer dials any address")
	}
	e, other := newEndpoint(t), newEndpoint(t)
	touched := make(chan net.Conn, 1)
	go func() {
		if c, err := other.Accept(); err == nil {
			touched <- c
			_ = c.Close()
		}
		close(touched)
	}()
	d := open(t, s, e.address())
	mustBeError(t, s, dialError(d, t.Context(), other.address()), other.address(), dialer.ErrAddressNotAllowed)
	// An allowed dial has passed through the same tunnel: no earlier dial is still under way.
	c1, c2 := e.pair(t, d)
	_, _ = c1.Close(), c2.Close()
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	if c := Within(t, touched, "the other endpoint"); c != nil {
		t.Error("the other address was dialed")
	}
}
