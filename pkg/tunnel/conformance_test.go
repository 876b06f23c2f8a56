// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"testing"
	"time"

	"github.com/oam-dev/cluster-gateway/pkg/dialer"
	"github.com/oam-dev/cluster-gateway/pkg/dialer/dialertest"
)

// The embedded server with the real agent passes the conformance suite, for each purpose. (Not
// parallel: the suite checks for leaked goroutines. So the streams that it needs are opened before,
// and kept. The second one for upgrades is the last that the cluster may have, so it is shared.)
func TestConformance(t *testing.T) {
	for purpose := range dialer.Purposes {
		t.Run(purpose.String(), func(t *testing.T) {
			g := startGateway(t, func(c *Config) { c.maxUpgrades, c.spareFor, c.warmFor = 2, time.Hour, time.Hour })
			g.startStockAgent(t, "east", "a")
			if purpose == dialer.ForUpgrades {
				echo := echoEndpoint(t)
				first, second := mustDialAddress(t, g, echo, purpose), mustDialAddress(t, g, echo, purpose)
				mustEcho(t, first, "with a stream of its own")
				mustEcho(t, second, "with another one")
				g.awaitParked(t, "east", "a")
				_, _ = first.Close(), second.Close() // the suite tests their errors
			}
			dialertest.TestDialer(t, dialertest.Subject{Cluster: "east", Tunneled: true, New: func(_ testing.TB, address string) dialer.Dialer {
				return g.Dialer("east", address, purpose)
			}})
		})
	}
}
