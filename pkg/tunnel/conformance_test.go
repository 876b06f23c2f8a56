// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"testing"

	"github.com/oam-dev/cluster-gateway/pkg/dialer"
	"github.com/oam-dev/cluster-gateway/pkg/dialer/dialertest"
)

// The embedded server with the real agent passes the conformance suite, for each purpose. (Not
// parallel: the suite checks for leaked goroutines.)
func TestConformance(t *testing.T) {
	for purpose := range dialer.Purposes {
		t.Run(purpose.String(), func(t *testing.T) {
			g := startGateway(t, nil)
			g.startStockAgent(t, "east", "a")
			dialertest.TestDialer(t, dialertest.Subject{Cluster: "east", Tunneled: true, New: func(_ testing.TB, address string) dialer.Dialer {
				return g.Dialer("east", address, purpose)
			}})
		})
	}
}
