// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"net"
	"strconv"
	"testing"
	"time"
)

// TestFirewalledCluster checks that the cluster cannot be dialed, and that kubectl works on it
// through the tunnel.
func TestFirewalledCluster(t *testing.T) {
	edge := shared.edge
	if !edge.Firewalled() {
		t.Skipf("there is no firewalled cluster: %v", edge.FirewallSkipped())
	}
	address := net.JoinHostPort(edge.Address(), strconv.Itoa(edge.Port()))
	dialer := net.Dialer{Timeout: 2 * time.Second}
	if conn, err := dialer.DialContext(t.Context(), "tcp", address); err == nil {
		conn.Close()
		t.Fatalf("%s can be dialed: there is no firewall", address)
	} else if timeout := net.Error(nil); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Fatalf("dialing %s failed, but not with the timeout of a firewall that drops packets: %v", address, err)
	}
	ctx := bounded(t, caseTimeout)
	config := edge.RESTConfig()
	config.Dial = nil // from inside the firewall
	direct := newKubectl(t, config, "--request-timeout=2s").try(ctx, t, "", "get", "--raw", "/version")
	if direct.code == 0 {
		t.Fatalf("kubectl works without a tunnel: %s", direct)
	}
	forEachRoute(t, func(t *testing.T, r route) {
		if r.target != edge {
			return // the routes to the other cluster do not pass a firewall
		}
		s := newSite(t, r)
		mustContain(t, s.kubectl.run(ctx, t, "get", "nodes"), "node-0", "Ready")
		mustContain(t, s.kubectl.runWith(ctx, t, manifest("behind", "the: firewall"), "apply", "-f", "-"), "created")
		mustContain(t, s.kubectl.run(ctx, t, "logs", podName), "hello from cluster "+edge.Name())
		mustContain(t, s.kubectl.run(ctx, t, "exec", podName, "--", "echo", "inside"), "inside")
	})
}
