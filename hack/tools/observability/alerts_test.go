// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/promql/promqltest"
	"github.com/prometheus/prometheus/rules"
)

// scenario is what happens to the series of an alert: something breaks, and is repaired.
type scenario struct {
	// series are samples, one a minute, in the notation of promqltest. The first is at 0.
	series string
	// quiet are minutes at which the alert does not fire: before the trouble, and during the time
	// for which it must last. firing is a minute at which it fires, resolved one at which it fires
	// no more.
	quiet            []int
	firing, resolved int
	// alerts are the labels of the alerts that fire, one a line.
	alerts []string
	// annotations must be part of the annotations of one of the alerts.
	annotations string
}

// scenarios are the cases of each alert. The first one of an alert fires and resolves. Time 0 is
// 1970-01-01.
var scenarios = map[string][]scenario{
	// The leader changes at minute 40: another replica reports the cluster.
	"ClusterGatewayClusterNotReady": {{
		series: `
			cluster_gateway_ready{cluster="edge-1", instance="a"} 1x9 0x29 stale
			cluster_gateway_ready{cluster="edge-1", instance="b"} _x39 0x9 1x30
			cluster_gateway_ready{cluster="edge-2", instance="a"} 1x39
			cluster_gateway_ready{cluster="edge-2", instance="b"} _x39 1x40`,
		quiet: []int{9, 14}, firing: 48, resolved: 51, alerts: []string{`cluster="edge-1"`}, annotations: "Cluster edge-1 is not ready",
	}},
	// The series of a cluster without agents is deleted.
	"ClusterGatewayNoAgent": {
		{
			series: `
				cluster_gateway_ready{cluster="edge-1", instance="a"} 1x60
				cluster_gateway_ready{cluster="direct", instance="a"} 1x60
				cluster_gateway_tunnel_agents{cluster="edge-1", instance="a"} 2x9 stale _x29 1x20
				cluster_gateway_tunnel_agents{cluster="edge-1", instance="b"} 2x9 stale`,
			quiet: []int{9, 14}, firing: 20, resolved: 41, alerts: []string{`cluster="edge-1"`}, annotations: "No agent of cluster edge-1",
		},
		{ // The cluster is unregistered at minute 30.
			series: `
				cluster_gateway_ready{cluster="edge-1", instance="a"} 1x29 stale
				cluster_gateway_tunnel_agents{cluster="edge-1", instance="a"} 2x9 stale`,
			quiet: []int{9, 14}, firing: 20, resolved: 31, alerts: []string{`cluster="edge-1"`},
		},
		{ // One replica stops, and the agents connect to the other one.
			series: `
				cluster_gateway_ready{cluster="edge-1", instance="a"} 1x60
				cluster_gateway_tunnel_agents{cluster="edge-1", instance="a"} 2x9 stale
				cluster_gateway_tunnel_agents{cluster="edge-1", instance="b"} 2x60`,
			quiet: []int{9, 20, 60},
		},
	},
	// Two agents with two connections each. One is away from minute 600 to 660.
	"ClusterGatewayFewerAgents": {
		{
			series: `
				cluster_gateway_tunnel_agents{cluster="edge-1", instance="a"} 2x599 1x59 2x60
				cluster_gateway_tunnel_agents{cluster="edge-1", instance="b"} 2x599 1x59 2x60
				cluster_gateway_tunnel_agents{cluster="edge-2", instance="b"} 1x720`,
			quiet: []int{599, 610}, firing: 620, resolved: 661, alerts: []string{`cluster="edge-1"`}, annotations: "has 2 connections of agents",
		},
		{ // A rollout has one more agent for a while.
			series: `cluster_gateway_tunnel_agents{cluster="edge-1", instance="a"} 2x599 3x9 2x60`,
			quiet:  []int{599, 605, 612, 640},
		},
	},
	"ClusterGatewayAgentFailing": {{
		series: `cluster_gateway_tunnel_agent_failing{cluster="edge-1", agent="x", instance="a"} _x9 1x20 stale`,
		quiet:  []int{9, 15}, firing: 22, resolved: 32, alerts: []string{`agent="x", cluster="edge-1"`}, annotations: "the agent x of the cluster edge-1",
	}},
	// The agent tries again each minute.
	"ClusterGatewayAgentsRefused": {{
		series: `
			cluster_gateway_tunnel_agents_refused_total{cluster="edge-1", instance="a"} 0x9 1+1x20 21x60
			cluster_gateway_tunnel_agents_refused_total{cluster="edge-2", instance="a"} 5x90`,
		quiet: []int{9, 15}, firing: 25, resolved: 60, alerts: []string{`cluster="edge-1"`}, annotations: "Agents of cluster edge-1",
	}},
	"ClusterGatewayDialsFailing": {{
		series: `
			cluster_gateway_dials_total{cluster="edge-1", stage="", result="success", instance="a"} 0+1x100
			cluster_gateway_dials_total{cluster="edge-1", stage="tls", result="failure", instance="a"} 0x9 3+3x30 93x60
			cluster_gateway_dials_total{cluster="edge-2", stage="", result="success", instance="a"} 0+9x100
			cluster_gateway_dials_total{cluster="edge-2", stage="tls", result="failure", instance="a"} 0+3x100`,
		quiet: []int{9, 15}, firing: 35, resolved: 60, alerts: []string{`cluster="edge-1"`}, annotations: "75% of the attempts",
	}},
	"ClusterGatewayRequestsFailing": {{
		series: `
			cluster_gateway_requests_total{cluster="edge-1", code="200", instance="a"} 0+9x100
			cluster_gateway_requests_total{cluster="edge-1", code="502", instance="a"} 0x9 1+1x30 31x60
			cluster_gateway_requests_total{cluster="edge-2", code="200", instance="a"} 0+9x100
			cluster_gateway_requests_total{cluster="edge-2", code="404", instance="a"} 0+9x100
			cluster_gateway_requests_total{cluster="edge-2", code="500", instance="a"} 0+9x100`,
		quiet: []int{9, 15}, firing: 35, resolved: 60, alerts: []string{`cluster="edge-1"`}, annotations: "10% of the requests for edge-1",
	}},
	"ClusterGatewayCredentialExpiresSoon": {
		{ // A token for 100 minutes is renewed when a fifth is left.
			series: `
				cluster_gateway_credential_expiration_timestamp_seconds{cluster="edge-1", instance="a"} 6000x79 10800x79
				cluster_gateway_credential_lifetime_seconds{cluster="edge-1", instance="a"} 6000x159`,
			quiet: []int{10, 79, 100, 159},
		},
		{ // A token for 400 minutes, renewed in the last minute.
			series: `
				cluster_gateway_credential_expiration_timestamp_seconds{cluster="edge-1", instance="a"} 24000x398 48000x60
				cluster_gateway_credential_lifetime_seconds{cluster="edge-1", instance="a"} 24000x458`,
			quiet: []int{359, 374}, firing: 380, resolved: 400, alerts: []string{`cluster="edge-1"`}, annotations: "credential for cluster edge-1 expires soon",
		},
		{ // Nothing is known of its lifetime. It expires after four days.
			series: `cluster_gateway_credential_expiration_timestamp_seconds{cluster="edge-1", instance="a"} 345600x1600 9999999x60`,
			quiet:  []int{1439, 1450}, firing: 1460, resolved: 1602, alerts: []string{`cluster="edge-1"`},
		},
	},
	"ClusterGatewayCertificateExpiresSoon": {{
		series: `
			cluster_gateway_certificate_expiration_timestamp_seconds{cluster="edge-1", certificate="agent", instance="a"} 24000x398 48000x60
			cluster_gateway_certificate_lifetime_seconds{cluster="edge-1", certificate="agent", instance="a"} 24000x458
			cluster_gateway_certificate_expiration_timestamp_seconds{cluster="edge-1", certificate="apiserver", instance="a"} 60000x458
			cluster_gateway_certificate_lifetime_seconds{cluster="edge-1", certificate="apiserver", instance="a"} 90000x458`,
		quiet: []int{359, 374}, firing: 380, resolved: 400, alerts: []string{`certificate="agent", cluster="edge-1"`}, annotations: "The certificate of the cluster's agent",
	}},
	// 8 days at first. The other replica has not read its certificate yet.
	"ClusterGatewayTunnelCertificateExpiresSoon": {{
		series: `
			cluster_gateway_tunnel_certificate_expiration_timestamp_seconds{certificate="serving", instance="a"} 691200x1600 9999999x60
			cluster_gateway_tunnel_certificate_expiration_timestamp_seconds{certificate="serving", instance="b"} 0x1660
			cluster_gateway_tunnel_certificate_expiration_timestamp_seconds{certificate="ca", instance="a"} 99999999x1660`,
		quiet: []int{10, 1439, 1450}, firing: 1460, resolved: 1602, alerts: []string{`certificate="serving"`}, annotations: "The tunnel's serving certificate",
	}},
	"ClusterGatewayServingCertificateExpiresSoon": {{
		series: `
			cluster_gateway_serving_certificate_expiration_timestamp_seconds{certificate="ca", instance="a"} 691200x1600 9999999x60
			cluster_gateway_serving_certificate_expiration_timestamp_seconds{certificate="serving", instance="b"} 0x1660`,
		quiet: []int{10, 1439, 1450}, firing: 1460, resolved: 1602, alerts: []string{`certificate="ca"`}, annotations: "The CA of the gateway's own endpoint",
	}},
	// A failed renewal is tried again each minute.
	"ClusterGatewayRenewalsFailing": {{
		series: `
			cluster_gateway_renewals_total{task="tokens", result="failure", instance="a"} 0x9 1+1x30 31x60
			cluster_gateway_renewals_total{task="tokens", result="success", instance="a"} 0+1x100
			cluster_gateway_renewals_total{task="agent", result="early", instance="a"} 0+1x100`,
		quiet: []int{9, 20}, firing: 30, resolved: 75, alerts: []string{`task="tokens"`}, annotations: "(tokens)",
	}},
	"ClusterGatewayAbsent": {{
		series: `cluster_gateway_identity_rules_valid{instance="a"} 1x9 stale _x29 1x20`,
		quiet:  []int{9, 14}, firing: 30, resolved: 41, alerts: []string{``}, annotations: "No gateway is there",
	}},
	// The lease of another program is not ours.
	"ClusterGatewayNoLeader": {{
		series: `
			leader_election_master_status{name="cluster-gateway", instance="a"} 1x9 0x60
			leader_election_master_status{name="cluster-gateway", instance="b"} 0x39 1x30
			leader_election_master_status{name="other", instance="b"} 1x80`,
		quiet: []int{9, 14}, firing: 30, resolved: 41, alerts: []string{``}, annotations: "No gateway is the leader",
	}},
	"ClusterGatewayIdentityRulesInvalid": {{
		series: `
			cluster_gateway_identity_rules_valid{instance="a"} 1x9 0x29 1x20
			cluster_gateway_identity_rules_valid{instance="b"} 1x60`,
		quiet: []int{9, 10}, firing: 12, resolved: 41, alerts: []string{``}, annotations: "--cluster-gateway-proxy-config",
	}},
	"ClusterGatewayMemoryNearlyUsed": {{
		series: `
			cluster_gateway_memory_budget_bytes{instance="a"} 1000x60
			cluster_gateway_memory_used_bytes{use="streams", instance="a"} 100x9 500x29 100x20
			cluster_gateway_memory_used_bytes{use="bodies", instance="a"} 400x60
			cluster_gateway_memory_budget_bytes{instance="b"} 1000x60
			cluster_gateway_memory_used_bytes{use="bodies", instance="b"} 800x60`,
		quiet: []int{9, 15}, firing: 30, resolved: 41, alerts: []string{`instance="a"`}, annotations: "90% of the memory budget",
	}},
	"ClusterGatewayMemoryRefusals": {{
		series: `
			cluster_gateway_memory_refusals_total{use="bodies", instance="a"} 0x9 1+1x20 21x60
			cluster_gateway_memory_refusals_total{use="streams", instance="a"} 7x90`,
		quiet: []int{9, 12}, firing: 20, resolved: 45, alerts: []string{`use="bodies"`}, annotations: "too little left for bodies",
	}},
	"ClusterGatewayLimitNearlyUsed": {{
		series: `
			cluster_gateway_limit_used_ratio{cluster="a", limit="streams", instance="x"} 0.5x9 0.9x30 0.1x40
			cluster_gateway_limit_used_ratio{cluster="a", limit="requests", instance="x"} 0.7x90`,
		quiet: []int{9, 15}, firing: 30, resolved: 45, alerts: []string{`cluster="a", limit="streams"`}, annotations: "90% of the limit for streams",
	}},
	"ClusterGatewayShortOfCPU": {{
		series: `
			cluster_gateway_requests_waited_for_turn_total{instance="a", job="gateway"} 0x9 0+600x40 24000x40
			cluster_gateway_requests_waited_for_turn_total{instance="b", job="gateway"} 0+30x90`,
		quiet: []int{9, 20}, firing: 35, resolved: 60, alerts: []string{`instance="a", job="gateway"`}, annotations: "10 requests per second wait",
	}},
	"ClusterGatewayPeerRenewalOld": {{
		series: `
			cluster_gateway_peers_oldest_renewal_seconds{instance="a", job="gateway"} 4x9 12x29 4x20
			cluster_gateway_peers_oldest_renewal_seconds{instance="b", job="gateway"} 4x60`,
		quiet: []int{9, 14}, firing: 30, resolved: 41, alerts: []string{`instance="a", job="gateway"`}, annotations: "is 12 s old",
	}},
	"ClusterGatewayHealthWritesFailing": {{
		series: `
			cluster_gateway_health_writes_total{result="failure", instance="a"} 0x9 1+1x20 21x60
			cluster_gateway_health_writes_total{result="success", instance="a"} 0+1x90`,
		quiet: []int{9, 15}, firing: 25, resolved: 50, alerts: []string{``}, annotations: "cannot be written",
	}},
	// The hub's API server has no series of a gateway.
	"ClusterGatewayAPIErrors": {{
		series: `
			cluster_gateway_identity_rules_valid{instance="a", job="gateway"} 1x100
			apiserver_request_total{resource="clustergateways", verb="LIST", code="200", instance="a", job="gateway"} 0+9x100
			apiserver_request_total{resource="clustergateways", verb="LIST", code="500", instance="a", job="gateway"} 0x9 1+1x30 31x60
			apiserver_request_total{resource="pods", verb="LIST", code="500", instance="hub", job="apiserver"} 0+9x100`,
		quiet: []int{9, 15}, firing: 35, resolved: 60, alerts: []string{`resource="clustergateways", verb="LIST"`}, annotations: "10% of the requests LIST clustergateways",
	}},
}

// generatedRules parses the generated file as Prometheus does.
func generatedRules(t *testing.T) map[string]rulefmt.Rule {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, manifests, "rules.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	groups, errs := rulefmt.Parse(data, false, model.LegacyValidation, parser.NewParser(parser.Options{}), slog.New(slog.DiscardHandler))
	for _, err := range errs {
		t.Error(err)
	}
	if groups == nil {
		t.FailNow()
	}
	all := map[string]rulefmt.Rule{}
	for _, g := range groups.Groups {
		for _, r := range g.Rules {
			if r.Labels["severity"] != critical && r.Labels["severity"] != warning {
				t.Errorf("%s: the severity is %q", r.Alert, r.Labels["severity"])
			}
			all[r.Alert] = r
		}
	}
	return all
}

// TestAlertsFireAndResolve evaluates each generated alert each minute, as Prometheus does.
func TestAlertsFireAndResolve(t *testing.T) {
	t.Parallel()
	generated := generatedRules(t)
	for name := range scenarios {
		if _, exists := generated[name]; !exists {
			t.Errorf("there is no alert %s", name)
		}
	}
	for name, rule := range generated {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			complete := false
			for _, s := range scenarios[name] {
				s.run(t, rule)
				complete = complete || len(s.alerts) > 0 && len(s.quiet) > 0 && s.resolved > s.firing
			}
			if !complete {
				t.Error("no scenario in which it is quiet, fires and resolves")
			}
		})
	}
}

// run evaluates a rule each minute of a scenario.
func (s *scenario) run(t *testing.T, rule rulefmt.Rule) {
	t.Helper()
	storage := promqltest.LoadedStorage(t, "load 1m\n"+indent(s.series))
	t.Cleanup(func() { _ = storage.Close() })
	query := rules.EngineQueryFunc(promqltest.NewTestEngine(t, false, 5*time.Minute, 1_000_000), storage)
	expr, err := parser.NewParser(parser.Options{}).ParseExpr(rule.Expr)
	if err != nil {
		t.Fatal(err)
	}
	alerting := rules.NewAlertingRule(rule.Alert, expr, time.Duration(rule.For), 0, labels.FromMap(rule.Labels), labels.FromMap(rule.Annotations),
		labels.EmptyLabels(), "", true, slog.New(slog.DiscardHandler))
	expected := map[int]bool{}
	last := max(s.firing, s.resolved)
	for _, minute := range s.quiet {
		expected[minute] = false
		last = max(last, minute)
	}
	if len(s.alerts) > 0 {
		expected[s.firing] = true
	}
	if s.resolved > 0 {
		expected[s.resolved] = false
	}
	for minute := 0; minute <= last; minute++ {
		if _, err := alerting.Eval(t.Context(), 0, time.Unix(int64(60*minute), 0).UTC(), query, &url.URL{}, 0); err != nil {
			t.Fatal(err)
		}
		fires, checked := expected[minute]
		if !checked {
			continue
		}
		var firing []*rules.Alert
		for _, a := range alerting.ActiveAlerts() {
			if a.State == rules.StateFiring {
				firing = append(firing, a)
			}
		}
		if got := len(firing) > 0; got != fires {
			t.Errorf("minute %d: %d alerts fire", minute, len(firing))
		}
		if fires {
			s.checkFiring(t, firing)
		}
	}
}

// checkFiring compares the labels and annotations of the alerts that fire.
func (s *scenario) checkFiring(t *testing.T, firing []*rules.Alert) {
	t.Helper()
	var got []string
	text := ""
	for _, a := range firing {
		own := labels.NewBuilder(a.Labels).Del(labels.AlertName, "severity").Labels()
		got = append(got, strings.Trim(own.String(), "{}"))
		for _, name := range []string{"summary", "description"} {
			text += a.Annotations.Get(name) + "\n"
		}
	}
	if a, b := strings.Join(got, "\n"), strings.Join(s.alerts, "\n"); a != b {
		t.Errorf("alerts with the labels\n%s\nfire, want\n%s", a, b)
	}
	if !strings.Contains(text, s.annotations) || strings.Contains(text, "error expanding") || strings.Contains(text, "<no value>") {
		t.Errorf("the annotations are\n%s\nwant %q", text, s.annotations)
	}
}

// indent makes each line part of a load command.
func indent(series string) string {
	var b strings.Builder
	for line := range strings.Lines(strings.TrimSpace(series) + "\n") {
		b.WriteString("  " + strings.TrimSpace(line) + "\n")
	}
	return b.String()
}
