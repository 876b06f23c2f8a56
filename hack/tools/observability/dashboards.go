// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import "fmt"

// dashboards returns all dashboards.
func dashboards() []*dashboard { return []*dashboard{overview(), perCluster()} }

// latency returns the queries for quantiles of a histogram.
func latency(histogram, selector string) []query {
	quantile := func(q float64) string {
		return fmt.Sprintf("histogram_quantile(%g, sum by (le) (rate(%s_bucket%s[$__rate_interval])))", q, histogram, selector)
	}
	return []query{{quantile(0.5), "50 %"}, {quantile(0.9), "90 %"}, {quantile(0.99), "99 %"}}
}

// overview shows all clusters and all replicas.
func overview() *dashboard {
	return &dashboard{
		file: "overview.json", uid: "cluster-gateway-overview", title: "Cluster Gateway",
		description: "All clusters and all replicas of the gateway.",
		rows: []row{
			{"Now", []panel{
				{kind: "stat", title: "Ready clusters", queries: []query{{`sum(max by (cluster) (cluster_gateway_ready))`, ""}}},
				{kind: "stat", title: "Clusters that are not ready", red: 1, queries: []query{{`count(min by (cluster) (cluster_gateway_ready) == 0) or vector(0)`, ""}}},
				{kind: "stat", title: "Replicas", queries: []query{{`count(cluster_gateway_identity_rules_valid)`, ""}}},
				{
					kind: "stat", title: "Leaders", description: "1, and for a short time 0 while the leader changes.",
					queries: []query{{`sum(leader_election_master_status{name="cluster-gateway"})`, ""}},
				},
				{kind: "stat", title: "Requests in flight", queries: []query{{`sum(cluster_gateway_requests_in_flight)`, ""}}},
				{kind: "stat", title: "Memory budget taken", unit: "percentunit", red: 0.8, queries: []query{
					{`max(sum without (use) (cluster_gateway_memory_used_bytes) / cluster_gateway_memory_budget_bytes)`, ""},
				}},
			}},
			{"Requests", []panel{
				{kind: "timeseries", title: "Requests by code", unit: "reqps", stack: true, queries: []query{
					{`sum by (code) (rate(cluster_gateway_requests_total[$__rate_interval]))`, "{{code}}"},
				}},
				{
					kind: "timeseries", title: "Latency", unit: "s", description: "Without long-running requests, and with the time of the cluster's API server.",
					queries: latency("cluster_gateway_request_duration_seconds", ""),
				},
				{
					kind: "timeseries", title: "502, 503 and 504 by cluster", unit: "percentunit", description: "The ten clusters with the largest part of such answers.",
					queries: []query{{
						`topk(10, sum by (cluster) (rate(cluster_gateway_requests_total{code=~"50[234]"}[$__rate_interval])) / sum by (cluster) (rate(cluster_gateway_requests_total[$__rate_interval])))`,
						"{{cluster}}",
					}},
				},
			}},
			{"Clusters", []panel{
				{kind: "table", title: "Not ready", queries: []query{{`min by (cluster) (cluster_gateway_ready) == 0`, ""}}},
				{kind: "table", title: "Credentials that expire first", unit: "s", queries: []query{
					{`sort(bottomk(10, min by (cluster) (cluster_gateway_credential_expiration_timestamp_seconds) - time()))`, ""},
				}},
				{kind: "table", title: "Certificates that expire first", unit: "s", queries: []query{
					{`sort(bottomk(10, min by (cluster, certificate) (cluster_gateway_certificate_expiration_timestamp_seconds) - time()))`, ""},
				}},
			}},
			{"Connections", []panel{
				{kind: "timeseries", title: "Attempts to connect", unit: "cps", stack: true, queries: []query{
					{`sum by (route, stage, result) (rate(cluster_gateway_dials_total[$__rate_interval]))`, "{{route}} {{stage}} {{result}}"},
				}},
				{kind: "timeseries", title: "Connections of agents by replica", queries: []query{{`sum by (instance) (cluster_gateway_tunnel_agents)`, "{{instance}}"}}},
				{kind: "timeseries", title: "Open connections to clusters", stack: true, queries: []query{{`sum by (route) (cluster_gateway_connections)`, "{{route}}"}}},
			}},
			{"Health and renewals", []panel{
				{kind: "timeseries", title: "Probes", unit: "ops", stack: true, queries: []query{
					{`sum by (result) (rate(cluster_gateway_health_probes_total[$__rate_interval]))`, "{{result}}"},
				}},
				{kind: "timeseries", title: "Duration of probes", unit: "s", queries: latency("cluster_gateway_health_probe_duration_seconds", "")},
				{kind: "timeseries", title: "Renewals in an hour", queries: []query{
					{`sum by (task, result) (increase(cluster_gateway_renewals_total[1h]))`, "{{task}} {{result}}"},
				}},
			}},
			{"Replicas", []panel{
				{kind: "timeseries", title: "Memory budget by use", unit: "bytes", stack: true, queries: []query{
					{`sum by (use) (cluster_gateway_memory_used_bytes)`, "{{use}}"},
				}},
				{kind: "timeseries", title: "Memory of the process", unit: "bytes", queries: []query{{ofGateways(`process_resident_memory_bytes`), "{{instance}}"}}},
				{kind: "timeseries", title: "CPU", unit: "short", queries: []query{{ofGateways(`rate(process_cpu_seconds_total[$__rate_interval])`), "{{instance}}"}}},
				{kind: "timeseries", title: "Limits of clusters, the most used", unit: "percentunit", red: 0.8, queries: []query{{`topk(5, max by (cluster, limit) (cluster_gateway_limit_used_ratio))`, "{{cluster}} {{limit}}"}}},
				{kind: "timeseries", title: "Requests that wait, for want of CPU time", queries: []query{{`sum by (instance) (cluster_gateway_requests_waiting_for_turn)`, "{{instance}}"}}},
				{kind: "timeseries", title: "Goroutines", queries: []query{{ofGateways(`go_goroutines`), "{{instance}}"}}},
			}},
			{"Peers and own API", []panel{
				{kind: "timeseries", title: "Requests forwarded to other replicas", unit: "reqps", stack: true, queries: []query{
					{`sum by (outcome) (rate(cluster_gateway_peer_requests_total[$__rate_interval]))`, "{{outcome}}"},
				}},
				{kind: "timeseries", title: "Oldest renewal of a replica", unit: "s", queries: []query{{`cluster_gateway_peers_oldest_renewal_seconds`, "{{instance}}"}}},
				{kind: "timeseries", title: "Requests of the gateway's own API", unit: "reqps", stack: true, queries: []query{
					{`sum by (code) (` + ofGateways(`rate(apiserver_request_total[$__rate_interval])`) + `)`, "{{code}}"},
				}},
				{kind: "table", title: "The gateway's certificates expire in", unit: "s", queries: []query{
					{`min by (certificate) (cluster_gateway_tunnel_certificate_expiration_timestamp_seconds > 0) - time()`, ""},
					{`min by (certificate) (cluster_gateway_serving_certificate_expiration_timestamp_seconds > 0) - time()`, ""},
				}},
			}},
		},
	}
}

// perCluster shows one cluster.
func perCluster() *dashboard {
	const selected = `{cluster="$cluster"}`
	return &dashboard{
		file: "cluster.json", uid: "cluster-gateway-cluster", title: "Cluster Gateway / cluster",
		description: "One cluster behind the gateway.", perCluster: true,
		rows: []row{
			{"Now", []panel{
				{kind: "stat", title: "Ready", queries: []query{{`min(cluster_gateway_ready` + selected + `)`, ""}}},
				{kind: "stat", title: "Connections of agents", queries: []query{{`sum(cluster_gateway_tunnel_agents` + selected + `) or vector(0)`, ""}}},
				{kind: "stat", title: "The credential expires in", unit: "s", queries: []query{{`min(cluster_gateway_credential_expiration_timestamp_seconds` + selected + `) - time()`, ""}}},
				{kind: "stat", title: "Certificates expire in", unit: "s", queries: []query{
					{`min by (certificate) (cluster_gateway_certificate_expiration_timestamp_seconds` + selected + `) - time()`, "{{certificate}}"},
				}},
				{kind: "stat", title: "Requests in flight", queries: []query{{`sum(cluster_gateway_requests_in_flight` + selected + `)`, ""}}},
			}},
			{"Requests", []panel{
				{kind: "timeseries", title: "Requests by code", unit: "reqps", stack: true, queries: []query{
					{`sum by (code) (rate(cluster_gateway_requests_total` + selected + `[$__rate_interval]))`, "{{code}}"},
				}},
				{kind: "timeseries", title: "Requests by verb", unit: "reqps", stack: true, queries: []query{
					{`sum by (verb) (rate(cluster_gateway_requests_total` + selected + `[$__rate_interval]))`, "{{verb}}"},
				}},
				{
					kind: "timeseries", title: "Latency", unit: "s", description: "Without long-running requests, and with the time of the cluster's API server.",
					queries: latency("cluster_gateway_request_duration_seconds", selected),
				},
			}},
			{"Connections", []panel{
				{kind: "timeseries", title: "Attempts to connect", unit: "cps", stack: true, queries: []query{
					{`sum by (stage, result) (rate(cluster_gateway_dials_total` + selected + `[$__rate_interval]))`, "{{stage}} {{result}}"},
				}},
				{kind: "timeseries", title: "Time to connect", unit: "s", queries: latency("cluster_gateway_dial_duration_seconds", selected)},
				{kind: "timeseries", title: "Open connections", queries: []query{{`sum by (instance) (cluster_gateway_connections` + selected + `)`, "{{instance}}"}}},
			}},
			{"Tunnel", []panel{
				{kind: "timeseries", title: "Connections of agents by replica", queries: []query{{`sum by (instance) (cluster_gateway_tunnel_agents` + selected + `)`, "{{instance}}"}}},
				{kind: "timeseries", title: "Agents that fail or are refused", queries: []query{
					{`max by (agent) (cluster_gateway_tunnel_agent_failing` + selected + `)`, "failing: {{agent}}"},
					{`sum(increase(cluster_gateway_tunnel_agents_refused_total` + selected + `[$__rate_interval]))`, "refused"},
				}},
				{kind: "timeseries", title: "Streams", stack: true, queries: []query{{`sum by (state) (cluster_gateway_tunnel_streams` + selected + `)`, "{{state}}"}}},
				{kind: "timeseries", title: "Upgraded connections", unit: "ops", stack: true, queries: []query{
					{`sum by (stream) (rate(cluster_gateway_tunnel_upgrades_total` + selected + `[$__rate_interval]))`, "{{stream}}"},
				}},
			}},
			{"Refusals", []panel{
				{kind: "timeseries", title: "Identities that are not carried", unit: "ops", stack: true, queries: []query{
					{`sum by (reason) (rate(cluster_gateway_identity_refusals_total` + selected + `[$__rate_interval]))`, "{{reason}}"},
				}},
				{kind: "timeseries", title: "Streams ended because the permission was lost", unit: "ops", queries: []query{
					{`sum(rate(cluster_gateway_streams_revoked_total` + selected + `[$__rate_interval]))`, "streams"},
				}},
			}},
		},
	}
}
