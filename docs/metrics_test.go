// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package docs

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/component-base/metrics"

	"github.com/oam-dev/cluster-gateway/pkg/health"
	"github.com/oam-dev/cluster-gateway/pkg/proxy"
	"github.com/oam-dev/cluster-gateway/pkg/rotation"
)

// metric is one line of the reference.
type metric struct{ name, kind, labels, help string }

var description = regexp.MustCompile(`^Desc\{fqName: "([^"]+)", help: "(.*?)", (?:unit: "[^"]*", )?constLabels: \{([^}]*)\}, variableLabels: \{([^}]*)\}\}$`)

func gatewayMetrics(t *testing.T) []metric {
	t.Helper()
	registry := metrics.NewKubeRegistry()
	var all []metric
	for _, m := range slices.Concat(proxy.NewMetrics().All(), health.NewMetrics().All(), rotation.NewMetrics().All()) {
		if err := registry.Register(m); err != nil {
			t.Fatal(err)
		}
		ch := make(chan *prometheus.Desc, 1)
		m.Describe(ch)
		match := description.FindStringSubmatch((<-ch).String())
		if match == nil {
			t.Fatalf("the description of %s cannot be read", m.FQName())
		}
		kind := strings.ToLower(strings.TrimSuffix(strings.TrimPrefix(fmt.Sprintf("%T", m), "*metrics."), "Vec"))
		all = append(all, metric{match[1], kind, strings.ReplaceAll(match[4], ",", ", "), strings.TrimPrefix(match[2], "[ALPHA] ")})
	}
	return slices.Concat(all, limitMetrics, memoryMetrics, identityMetrics, peerMetrics, certificateMetrics)
}

// limitMetrics are those that pkg/proxy computes when they are read.
var limitMetrics = []metric{
	{"cluster_gateway_limit_used_ratio", "gauge", "cluster, limit", "Part of a limit that is used, by cluster and limit (requests: `--proxy-max-requests-inflight`; streams: `--proxy-max-streams`; dials: 64 for each cluster, and `--proxy-max-dials` for all of them together, with an empty cluster). There is no series if nothing is used."},
}

// memoryMetrics are those of pkg/internal/memory, which are computed when they are read.
var memoryMetrics = []metric{
	{"cluster_gateway_memory_budget_bytes", "gauge", "", "Memory that clients and clusters can make the gateway hold (`--memory-budget`)."},
	{"cluster_gateway_memory_used_bytes", "gauge", "use", "Memory that is taken from the budget, by use (requests, streams, bodies, tunnels, unauthenticated)."},
	{"cluster_gateway_memory_refusals_total", "counter", "use", "How often there was not enough left in the budget, by use."},
}

// identityMetrics are those of pkg/server/identities.go.
var identityMetrics = []metric{
	{"cluster_gateway_identity_rules_valid", "gauge", "", "1 if the file of `--cluster-gateway-proxy-config` can be used or is not set, and 0 while requests are refused because it is invalid."},
}

// peerMetrics are those of pkg/peers.
var peerMetrics = []metric{
	{"cluster_gateway_peer_requests_total", "counter", "outcome", "Requests forwarded to other replicas, by outcome (answered; no_agent: no replica has an agent any more; unreachable: no connection to a replica; failed: the connection broke, or the client left)."},
	{"cluster_gateway_peers", "gauge", "", "Other replicas of the gateway that are present."},
	{"cluster_gateway_peers_oldest_renewal_seconds", "gauge", "", "Time since the last renewal of the present replica whose renewal is the oldest."},
}

// certificateMetrics are those of pkg/server, which makes them only for a server that runs.
var certificateMetrics = []metric{
	{"cluster_gateway_tunnel_certificate_expiration_timestamp_seconds", "gauge", "certificate",
		"When the tunnel server's serving certificate (serving), the tunnel CA (ca) or the CA of agents' certificates (agents-ca) expires, in Unix time; 0 while it has not been read, and agents-ca also if there is no such CA."},
	{"cluster_gateway_tunnel_agents_with_tunnel_ca_certificate", "gauge", "",
		"Agents that are connected to this replica with a certificate from the tunnel's CA, and not from the CA of agents' certificates. 0 if there is no such CA."},
	{"cluster_gateway_serving_certificate_expiration_timestamp_seconds", "gauge", "certificate",
		"When the certificate (serving) or the CA (ca) of the gateway's own HTTPS endpoint expires, in Unix time; 0 while it has not been read."},
}

var metricConstructor = regexp.MustCompile(`(?:metrics|prometheus)\.New(?:Counter|Gauge|Histogram|Summary|Timing|Desc)\w*\(`)

// TestMetricsAreKnown finds metrics that gatewayMetrics does not have: all are made in these files,
// and those of pkg/server are listed above.
func TestMetricsAreKnown(t *testing.T) {
	found := map[string]int{}
	for _, s := range goFiles(t) {
		if strings.HasPrefix(s.path, "pkg/") && !strings.HasSuffix(s.path, "_test.go") {
			if n := len(metricConstructor.FindAll(s.text, -1)); n > 0 {
				found[s.path] = n
			}
			if s.path == "pkg/server/metrics.go" {
				for _, part := range []string{`+ "_certificate_expiration_timestamp_seconds"`, `gauge("tunnel",`, `gauge("serving",`, `"tunnel_agents_with_tunnel_ca_certificate"`} {
					if !bytes.Contains(s.text, []byte(part)) {
						t.Errorf("%s has no %s: bring certificateMetrics up to date", s.path, part)
					}
				}
			}
		}
	}
	for path, n := range found {
		switch {
		case path == "pkg/proxy/limitusage.go" && n == len(limitMetrics):
		case path == "pkg/internal/memory/metrics.go" && n == len(memoryMetrics):
		case path == "pkg/peers/metrics.go" && n == len(peerMetrics):
		case path == "pkg/server/identities.go" && n == len(identityMetrics):
		case path == "pkg/proxy/metrics.go", path == "pkg/health/metrics.go", path == "pkg/rotation/metrics.go", path == "pkg/server/metrics.go" && n == 2:
		default:
			t.Errorf("%s makes %d metrics that docs/reference/metrics.md does not have: add them to gatewayMetrics", path, n)
		}
	}
}

var metricInText = regexp.MustCompile(`\bcluster_gateway_[a-z_]+\b`)

// TestMetricsInPagesExist checks that each metric a page names exists.
func TestMetricsInPagesExist(t *testing.T) {
	known := map[string]bool{}
	for _, m := range gatewayMetrics(t) {
		known[m.name] = true
		if m.kind == "histogram" {
			known[m.name+"_bucket"], known[m.name+"_sum"], known[m.name+"_count"] = true, true, true
		}
	}
	for _, p := range pages(t) {
		for _, l := range p.lines {
			for _, name := range metricInText.FindAllString(l.text, -1) {
				if !known[name] {
					t.Errorf("%s:%d: there is no metric %s", p.path, l.number, name)
				}
			}
		}
	}
}

// TestMetricReference compares docs/reference/metrics.md with the metrics of the gateway.
func TestMetricReference(t *testing.T) {
	var b strings.Builder
	b.WriteString("# Metrics of the gateway\n\n" + generatedBy)
	b.WriteString("The gateway serves these at `/metrics`, together with those of every Kubernetes API server.\n" +
		"[Observe the gateway](../observe.md#metrics-and-probes) says what to watch.\n\n" +
		"| metric | type | labels | meaning |\n| --- | --- | --- | --- |\n")
	for _, m := range gatewayMetrics(t) {
		labels := m.labels
		if labels == "" {
			labels = "–"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", m.name, m.kind, labels, strings.ReplaceAll(m.help, "|", `\|`))
	}
	b.WriteString("\nOf the other metrics, the gateway's rules and dashboards use:\n\n" +
		"| metric | type | labels | meaning |\n| --- | --- | --- | --- |\n" +
		"| `leader_election_master_status` | gauge | name | 1 on the replica that is the leader, 0 on the others. The name is `cluster-gateway`. There is no series with `--leader-elect=false`. |\n" +
		"| `apiserver_request_total` | counter | verb, code, group, version, resource and others | Requests of the gateway's own API. Proxied requests are not among them. |\n" +
		"| `process_resident_memory_bytes` | gauge | – | Memory of the process. |\n" +
		"| `process_cpu_seconds_total` | counter | – | CPU time of the process. |\n" +
		"| `go_goroutines` | gauge | – | Goroutines of the process. |\n")
	compareGenerated(t, "docs/reference/metrics.md", b.String())
}
