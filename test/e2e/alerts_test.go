// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/oam-dev/cluster-gateway/test/lab"
)

// The expressions that alertsOf evaluates, as they are in the generated rules.
var evaluated = map[string]string{
	"ClusterGatewayClusterNotReady": `min by (cluster) (cluster_gateway_ready) == 0`,
	"ClusterGatewayNoAgent": `max by (cluster) (max_over_time(cluster_gateway_tunnel_agents[1d])) ` +
		`unless on (cluster) max by (cluster) (cluster_gateway_tunnel_agents) and on (cluster) max by (cluster) (cluster_gateway_ready)`,
	"ClusterGatewayNoLeader": `max(leader_election_master_status{name="cluster-gateway"}) == 0`,
}

// alertsOf returns the alerts about a cluster whose expressions are true for the metrics that the
// gateway serves now. hadAgent is whether an earlier call has seen an agent of the cluster.
func alertsOf(ctx context.Context, t *testing.T, g *lab.Gateway, cluster string, hadAgent bool) (alerts string, hasAgent bool) {
	t.Helper()
	text, err := g.Metrics(ctx)
	if err != nil {
		t.Fatal(err)
	}
	series := map[string]string{}
	for line := range bytes.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(string(line)), "} "); ok {
			series[name+"}"] = value
		}
	}
	label := `{cluster="` + cluster + `"}`
	ready, registered := series["cluster_gateway_ready"+label]
	agents, hasAgent := series["cluster_gateway_tunnel_agents"+label]
	leader, elects := series[`leader_election_master_status{name="cluster-gateway"}`]
	if hasAgent && agents == "0" {
		t.Errorf("there is a series for a cluster without agents, so that NoAgent cannot fire")
	}
	if !elects {
		t.Error("leader_election_master_status has no series, so that NoLeader cannot fire")
	}
	var all []string
	if registered && ready == "0" {
		all = append(all, "ClusterGatewayClusterNotReady")
	}
	if registered && hadAgent && !hasAgent {
		all = append(all, "ClusterGatewayNoAgent")
	}
	if leader == "0" {
		all = append(all, "ClusterGatewayNoLeader")
	}
	return strings.Join(all, " "), hasAgent
}

// TestAlertsOfAKilledAgent checks that the metrics of a real gateway make the alerts about a
// missing agent true when the agent is killed, and false when it is back. The tests of the rules
// evaluate them over time, with metrics that are written by hand.
func TestAlertsOfAKilledAgent(t *testing.T) {
	data, err := os.ReadFile("../../manifests/gateway/monitoring/rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var rules struct {
		Groups []struct {
			Rules []struct{ Alert, Expr string }
		}
	}
	if err := yaml.Unmarshal(data, &rules); err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, group := range rules.Groups {
		for _, rule := range group.Rules {
			if want, ok := evaluated[rule.Alert]; ok {
				found++
				if got := strings.Join(strings.Fields(rule.Expr), " "); got != want {
					t.Errorf("%s is\n%s\nand this test evaluates\n%s", rule.Alert, got, want)
				}
			}
		}
	}
	if found != len(evaluated) {
		t.Errorf("%d of the alerts exist, want %d", found, len(evaluated))
	}

	ctx := bounded(t, 2*caseTimeout)
	const name = "alerts-agent"
	k := newKubectl(t, shared.embedded.RESTConfig(lab.ViaHub))
	registerTunnel(ctx, t, name, shared.edge)
	_, agent := startEmbeddedAgent(ctx, t, name)
	becomes(ctx, t, k, name, tunnelIsWell)
	alerts, hadAgent := alertsOf(ctx, t, shared.embedded, name, false)
	if alerts != "" || !hadAgent {
		t.Errorf("with an agent (%v), these alerts are true: %q", hadAgent, alerts)
	}
	if err := agent.Kill(); err != nil {
		t.Fatal(err)
	}
	becomes(ctx, t, k, name, "Ready=False/NoAgent TunnelConnected=False/NoAgent"+notReached)
	if alerts, _ := alertsOf(ctx, t, shared.embedded, name, hadAgent); alerts != "ClusterGatewayClusterNotReady ClusterGatewayNoAgent" {
		t.Errorf("without an agent, these alerts are true: %q", alerts)
	}
	_, _ = startEmbeddedAgent(ctx, t, name)
	becomes(ctx, t, k, name, tunnelIsWell)
	if alerts, _ := alertsOf(ctx, t, shared.embedded, name, hadAgent); alerts != "" {
		t.Errorf("with an agent again, these alerts are true: %q", alerts)
	}
}
