// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package dialertest

import (
	"errors"
	"io"
	"net"
	"testing"
)

// Tests of what the suite promises about Close of a Dialer.

func testDialerClose(t *testing.T, s Subject) {
	e := newEndpoint(t)
	d := s.New(t, e.address())
	c1, c2 := e.pair(t, d)
	near, far := make(chan error, 1), make(chan error, 1)
	go func() { near <- readError(c1) }()
	go func() { far <- readError(c2) }()
	closes := make(chan error, 4)
	for range cap(closes) {
		go func() { closes <- d.Close() }()
	}
	for range cap(closes) {
		if err := Within(t, closes, "Close"); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	if err := Within(t, near, "Read on the near side"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Read: %v, want net.ErrClosed", err)
	}
	if err := Within(t, far, "Read on the far side"); err != io.EOF {
		t.Errorf("the far side's Read: %v, want io.EOF", err)
	}
	if err := d.Close(); err != nil {
		t.Errorf("another Close: %v", err)
	}
	mustBeError(t, s, dialError(d, t.Context(), e.address()), e.address(), net.ErrClosed)
}

func testDialerCloseCancels(t *testing.T, s Subject) {
	address := Unanswering(t)
	d := s.New(t, address)
	const n = 5
	failed := make(chan error, n)
	for range n {
		observed := NewObservedContext(t.Context())
		go func() { failed <- dialError(d, observed, address) }()
		Within(t, observed.Observed(), "the start of the dial")
	}
	if err := d.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	for range n {
		mustBeError(t, s, Within(t, failed, "a dial under way"), address, net.ErrClosed)
	}
}
