// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package dialertest

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/oam-dev/cluster-gateway/pkg/dialer"
)

// Subject is a kind of dialer.Dialer under test.
type Subject struct {
	// Cluster is the cluster name in its errors.
	Cluster string
	// New returns a Dialer whose registered API server is address. The suite closes it.
	New func(t testing.TB, address string) dialer.Dialer
	// Tunneled means that no address but the registered one may be dialed.
	Tunneled bool
}

// TestDialer tests what every Dialer promises. The API server is always a TCP listener of the
// suite.
//
// It checks for leaked goroutines after each of its tests, so it must not run in parallel with
// other tests.
func TestDialer(t *testing.T, s Subject) {
	// The subject's tunnel starts goroutines when it is first used.
	if ok := t.Run("Warm", func(t *testing.T) {
		e := newEndpoint(t)
		e.pair(t, open(t, s, e.address()))
	}); !ok {
		return
	}
	for _, test := range []struct {
		name string
		run  func(t *testing.T, s Subject)
	}{
		{"NetConn", testNetConn},
		{"Addresses", testAddresses},
		{"ContextBoundsEstablishmentOnly", testContextEstablishmentOnly},
		{"ContextEndedBefore", testContextEndedBefore},
		{"ContextEndsDuringDial", testContextEndsDuringDial},
		{"EndpointSpeaksAndLeavesAtOnce", testSpeaksAndLeaves},
		{"RemoteCloseKeepsWhatWasSent", testRemoteClose},
		{"CloseSendsWhatWasWritten", testCloseSends},
		{"CloseUnblocksBothSides", testCloseUnblocksRead},
		{"CloseUnblocksWrite", testCloseUnblocksWrite},
		{"ParallelConnections", testParallel},
		{"WritesDoNotMix", testWritesDoNotMix},
		{"RefusedEndpoint", testRefused},
		{"OtherAddress", testOtherAddress},
		{"DialerClose", testDialerClose},
		{"DialerCloseCancelsDials", testDialerCloseCancels},
	} {
		t.Run(test.name, func(t *testing.T) {
			// The subject's own goroutines keep running. Each test starts and ends its own dialers and
			// connections.
			running := goleak.IgnoreCurrent()
			ok := t.Run("it", func(t *testing.T) { test.run(t, s) })
			if ok {
				NoLeak(t, running)
			}
		})
	}
}
