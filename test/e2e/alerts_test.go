// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/oam-dev/cluster-gateway/test/lab"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

// The expressions that alertsOf evaluates, as they are in the generated rules.
var evaluated = map[string]string{
	"ClusterGatewayClusterNotReady": `min by (cluster) (cluster_gateway_ready) == 0`,
	"ClusterGatewayNoAgent": `max by (cluster) (max_over_time(cluster_gateway_tunnel_agents[1d])) ` +
		`unless on (cluster) max by (cluster) (cluster_gateway_tunnel_agents) and on (cluster) max by (cluster) (cluster_gateway_ready)`,
	"ClusterGatewayNoLeader": `max(leader_election_master_status{name="cluster-gateway"}) == 0`,
	"ClusterGatewayCredentialExpiresSoon": `(min by (cluster) (cluster_gateway_credential_expiration_timestamp_seconds) - time()) ` +
		`< on (cluster) 0.1 * max by (cluster) (cluster_gateway_credential_lifetime_seconds) ` +
		`or (min by (cluster) (cluster_gateway_credential_expiration_timestamp_seconds) unless on (cluster) cluster_gateway_credential_lifetime_seconds) - time() < 3 * 86400`,
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
	expiry, expires := numberOf(t, series, "cluster_gateway_credential_expiration_timestamp_seconds"+label)
	lifetime, known := numberOf(t, series, "cluster_gateway_credential_lifetime_seconds"+label)
	left := expiry - float64(time.Now().Unix())
	if expires && known && left < 0.1*lifetime || expires && !known && left < 3*86400 {
		all = append(all, "ClusterGatewayCredentialExpiresSoon")
	}
	if leader == "0" {
		all = append(all, "ClusterGatewayNoLeader")
	}
	return strings.Join(all, " "), hasAgent
}

// numberOf returns the value of a series, if it exists.
func numberOf(t *testing.T, series map[string]string, name string) (value float64, exists bool) {
	t.Helper()
	text, exists := series[name]
	if !exists {
		return 0, false
	}
	value, err := strconv.ParseFloat(text, 64)
	if err != nil {
		t.Fatal(err)
	}
	return value, true
}

// TestEvaluatedAlerts checks that alertsOf evaluates the expressions of the rules. The tests of the
// rules evaluate them over time, with metrics that are written by hand.
func TestEvaluatedAlerts(t *testing.T) {
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
}

// TestAlertsOfAKilledAgent checks that the metrics of a real gateway make the alerts about a
// missing agent true when the agent is killed, and false when it is back.
func TestAlertsOfAKilledAgent(t *testing.T) {
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

// alertsBecome waits until the alerts about a cluster are these.
func alertsBecome(ctx context.Context, t *testing.T, cluster, want string) {
	t.Helper()
	took := labtest.Within(t, labtest.Timeout, "the alerts to become "+strconv.Quote(want), func() error {
		if alerts, _ := alertsOf(ctx, t, shared.embedded, cluster, false); alerts != want {
			return fmt.Errorf("they are %q", alerts)
		}
		return nil
	})
	t.Logf("%q after %s", want, took.Round(10*time.Millisecond))
}

// TestAlertOfAnExpiringCredential checks that the alert is true for a client certificate that
// has a hundredth of its lifetime left, and false when another one has replaced it.
func TestAlertOfAnExpiringCredential(t *testing.T) {
	ctx := bounded(t, 2*caseTimeout)
	const name = "alerts-credential"
	for _, c := range []struct {
		left time.Duration
		want string
	}{{24 * time.Hour, ""}, {10 * time.Minute, "ClusterGatewayCredentialExpiresSoon"}, {24 * time.Hour, ""}} {
		now := time.Now()
		pair, err := shared.direct.CA().Issue(lab.CertOptions{
			CN: "gateway", Orgs: []string{"system:masters"}, Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
			NotBefore: now.Add(-16 * time.Hour), NotAfter: now.Add(c.left),
		})
		if err != nil {
			t.Fatal(err)
		}
		register(ctx, t, shared.embeddedHub, lab.SecretOptions{Name: name, CredentialType: "X509Certificate", Data: map[string][]byte{
			"endpoint": []byte(shared.direct.Endpoint()), "ca.crt": shared.direct.CAPEM(), "tls.crt": pair.CertPEM, "tls.key": pair.KeyPEM,
		}})
		waitKnown(t, shared.embedded, name)
		alertsBecome(ctx, t, name, c.want)
	}
}

// TestAlertOfNoLeader checks that the alert is true while a replica that does not answer has the
// Lease of the leader, and false when that is over.
func TestAlertOfNoLeader(t *testing.T) {
	ctx := bounded(t, 2*caseTimeout)
	leases := shared.embeddedHub.Client().CoordinationV1().Leases(namespaceOfSecrets)
	hold := func(ctx context.Context, holder string) {
		patch := fmt.Sprintf(`{"spec":{"holderIdentity":%q,"leaseDurationSeconds":3600,"renewTime":%q}}`, holder, time.Now().UTC().Format(metav1.RFC3339Micro))
		if _, err := leases.Patch(ctx, "cluster-gateway", types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
			t.Error(err)
		}
	}
	const anyCluster = "direct"
	alertsBecome(ctx, t, anyCluster, "")
	t.Cleanup(func() { hold(context.WithoutCancel(ctx), "") })
	hold(ctx, "a replica that does not answer")
	alertsBecome(ctx, t, anyCluster, "ClusterGatewayNoLeader")
	hold(ctx, "")
	alertsBecome(ctx, t, anyCluster, "")
}
