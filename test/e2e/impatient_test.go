// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/oam-dev/cluster-gateway/test/lab"
)

// impatientRoutes returns the three routes by gateways with a short time limit for ordinary
// requests, and half of it for dials. The gateways use the hubs of the shared gateways, and so have
// the same clusters. They have no APIService: clients can reach only their own endpoint. They stop
// when the test ends.
func (e *env) impatientRoutes(t *testing.T, limit time.Duration) []route {
	t.Helper()
	ctx := bounded(t, caseTimeout)
	start := func(o lab.GatewayOptions) *lab.Gateway {
		o.Name += "-" + strings.ToLower(t.Name())
		o.Binary, o.Verbosity = e.binary, verbosity
		o.ExtraArgs = []string{"--proxy-request-timeout=" + limit.String(), "--proxy-dial-timeout=" + (limit / 2).String()}
		g, err := e.lab.StartGateway(ctx, o)
		if err != nil {
			t.Fatal(err)
		}
		stopAfter(t, g)
		return g
	}
	embedded := start(lab.GatewayOptions{Name: "impatient-embedded", Hub: e.embeddedHub})
	external := start(lab.GatewayOptions{Name: "impatient-external", Hub: e.externalHub, Konnectivity: e.konnectivity})
	agent, err := embedded.StartAgent(ctx, "edge", e.edge)
	if err != nil {
		t.Fatal(err)
	}
	stopAfter(t, agent)
	return []route{
		{"direct", "direct", embedded, e.direct, lab.ViaOwnEndpoint},
		{"embedded", "edge", embedded, e.edge, lab.ViaOwnEndpoint},
		{"external", "edge", external, e.edge, lab.ViaOwnEndpoint},
	}
}

// stopAfter stops a process when the test ends.
func stopAfter(t *testing.T, process interface{ Stop() error }) {
	t.Helper()
	t.Cleanup(func() {
		if err := process.Stop(); err != nil {
			t.Error(err)
		}
	})
}
