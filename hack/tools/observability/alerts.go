// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import "fmt"

// ofGateways restricts a metric that other programs have as well, such as the hub's API server, to
// the series of gateways. It does not depend on the names of scrape jobs.
func ofGateways(expr string) string {
	return expr + " and on (job, instance) cluster_gateway_identity_rules_valid"
}

// expiresSoon is true if a tenth of a lifetime is left, as for the reason ExpiresSoon of
// conditions. If the lifetime is not known, it is true three days before the end.
func expiresSoon(expiry, lifetime, labels string) string {
	return fmt.Sprintf(`
  (min by (%[3]s) (%[1]s) - time())
< on (%[3]s)
  0.1 * max by (%[3]s) (%[2]s)
or
  (min by (%[3]s) (%[1]s) unless on (%[3]s) %[2]s) - time() < 3 * 86400
`, expiry, lifetime, labels)
}

// alerts returns all alerts. Each has a section in docs/runbooks.md and a case in alerts_test.go.
//
// A replica reports the agents that are connected to itself, and no series for a cluster without
// agents. Only the leader reports health and expiry. So expressions aggregate over replicas.
func alerts() []group {
	return []group{
		{"cluster-gateway.clusters", []alert{
			{
				name: "ClusterGatewayClusterNotReady", severity: critical, hold: "5m",
				expr:        `min by (cluster) (cluster_gateway_ready) == 0`,
				summary:     "Cluster {{ $labels.cluster }} is not ready",
				description: "The probes of the cluster {{ $labels.cluster }} fail. Requests for it fail as well. The condition Ready of the ClusterGateway says why.",
			},
			{
				// A cluster that was unregistered has no health, so the alert ends with it.
				name: "ClusterGatewayNoAgent", severity: critical, hold: "5m",
				expr: `
max by (cluster) (max_over_time(cluster_gateway_tunnel_agents[1d]))
  unless on (cluster) max by (cluster) (cluster_gateway_tunnel_agents)
  and on (cluster) max by (cluster) (cluster_gateway_ready)
`,
				summary:     "No agent of cluster {{ $labels.cluster }} is connected",
				description: "Agents of the cluster {{ $labels.cluster }} were connected in the last day, and none is now.",
			},
			{
				// The median of a day ignores the additional agents of a rollout, and follows a change that
				// stays.
				name: "ClusterGatewayFewerAgents", severity: warning, hold: "15m",
				expr: `
  sum by (cluster) (cluster_gateway_tunnel_agents)
<
  quantile_over_time(0.5, (sum by (cluster) (cluster_gateway_tunnel_agents))[1d:10m])
`,
				summary:     "Agents of cluster {{ $labels.cluster }} are missing",
				description: "The cluster {{ $labels.cluster }} has {{ $value }} connections of agents, fewer than usual in the last day. It works, but may lose its last agent next.",
			},
			{
				name: "ClusterGatewayAgentFailing", severity: warning, hold: "10m",
				expr:        `max by (cluster, agent) (cluster_gateway_tunnel_agent_failing) == 1`,
				summary:     "An agent of cluster {{ $labels.cluster }} is connected and carries nothing",
				description: "Connections through the agent {{ $labels.agent }} of the cluster {{ $labels.cluster }} fail, while another agent works.",
			},
			{
				name: "ClusterGatewayAgentsRefused", severity: warning, hold: "10m",
				expr:        `sum by (cluster) (increase(cluster_gateway_tunnel_agents_refused_total[15m])) > 0`,
				summary:     "Agents of cluster {{ $labels.cluster }} are refused",
				description: "The gateway refuses agents of the cluster {{ $labels.cluster }}: there are too many, or their certificates are revoked.",
			},
			{
				name: "ClusterGatewayDialsFailing", severity: warning, hold: "10m",
				expr: `
  sum by (cluster) (rate(cluster_gateway_dials_total{result="failure"}[10m]))
/
  sum by (cluster) (rate(cluster_gateway_dials_total[10m]))
> 0.5
`,
				summary:     "Connections to cluster {{ $labels.cluster }} fail",
				description: "{{ $value | humanizePercentage }} of the attempts to connect to the API server of {{ $labels.cluster }} failed in the last 10 minutes.",
			},
			{
				name: "ClusterGatewayRequestsFailing", severity: critical, hold: "10m",
				expr: `
  sum by (cluster) (rate(cluster_gateway_requests_total{code=~"50[234]"}[10m]))
/
  sum by (cluster) (rate(cluster_gateway_requests_total[10m]))
> 0.05
`,
				summary:     "Requests for cluster {{ $labels.cluster }} fail",
				description: "{{ $value | humanizePercentage }} of the requests for {{ $labels.cluster }} were answered with 502, 503 or 504 in the last 10 minutes.",
			},
		}},
		{"cluster-gateway.expiry", []alert{
			{
				name: "ClusterGatewayCredentialExpiresSoon", severity: warning, hold: "15m",
				expr:        expiresSoon("cluster_gateway_credential_expiration_timestamp_seconds", "cluster_gateway_credential_lifetime_seconds", "cluster"),
				summary:     "The credential for cluster {{ $labels.cluster }} expires soon",
				description: "The credential for {{ $labels.cluster }} was not renewed. After it has expired, every request for the cluster fails.",
			},
			{
				name: "ClusterGatewayCertificateExpiresSoon", severity: warning, hold: "15m",
				expr:        expiresSoon("cluster_gateway_certificate_expiration_timestamp_seconds", "cluster_gateway_certificate_lifetime_seconds", "cluster, certificate"),
				summary:     "A certificate of cluster {{ $labels.cluster }} expires soon",
				description: `The certificate of the cluster's {{ if eq $labels.certificate "agent" }}agent{{ else }}API server{{ end }} was not renewed. After it has expired, every request for {{ $labels.cluster }} fails.`,
			},
			{
				// 0 means that it was not read yet. The default lifetime is 90 days, and the gateway renews
				// 18 days before the end.
				name: "ClusterGatewayTunnelCertificateExpiresSoon", severity: warning, hold: "15m",
				expr:        `min by (certificate) (cluster_gateway_tunnel_certificate_expiration_timestamp_seconds > 0) - time() < 7 * 86400`,
				summary:     `The tunnel's {{ if eq $labels.certificate "ca" }}CA{{ else if eq $labels.certificate "agents-ca" }}CA of agents' certificates{{ else }}serving certificate{{ end }} expires soon`,
				description: "It was not renewed. After it has expired, no agent can connect.",
			},
			{
				name: "ClusterGatewayServingCertificateExpiresSoon", severity: warning, hold: "15m",
				expr:        `min by (certificate) (cluster_gateway_serving_certificate_expiration_timestamp_seconds > 0) - time() < 7 * 86400`,
				summary:     `The {{ if eq $labels.certificate "ca" }}CA{{ else }}certificate{{ end }} of the gateway's own endpoint expires soon`,
				description: "It was not renewed. After it has expired, the hub's API server can no longer reach the gateway.",
			},
			{
				name: "ClusterGatewayRenewalsFailing", severity: warning, hold: "15m",
				expr:        `sum by (task) (increase(cluster_gateway_renewals_total{result="failure"}[30m])) > 0`,
				summary:     "Renewals of credentials fail",
				description: `The gateway cannot renew what is due in managed clusters ({{ $labels.task }}). The conditions of the clusters with the reason RenewalFailed say why.`,
			},
		}},
		{"cluster-gateway.gateway", []alert{
			{
				name: "ClusterGatewayAbsent", severity: critical, hold: "5m",
				expr:        `absent(cluster_gateway_identity_rules_valid)`,
				summary:     "No gateway is there",
				description: "Prometheus reads the metrics of no gateway. Either none runs, or Prometheus may not read them.",
			},
			{
				name: "ClusterGatewayNoLeader", severity: critical, hold: "5m",
				expr:        `max(leader_election_master_status{name="cluster-gateway"}) == 0`,
				summary:     "No gateway is the leader",
				description: "Nobody probes clusters, renews credentials or registers invited clusters. Requests are still served.",
			},
			{
				name: "ClusterGatewayIdentityRulesInvalid", severity: critical, hold: "1m",
				expr:        `min(cluster_gateway_identity_rules_valid) == 0`,
				summary:     "The rules for identities are invalid, and requests are refused",
				description: "A gateway cannot use the file of --cluster-gateway-proxy-config, and refuses the requests that depend on it.",
			},
			{
				name: "ClusterGatewayMemoryNearlyUsed", severity: warning, hold: "10m",
				expr: `
  sum without (use) (cluster_gateway_memory_used_bytes)
/
  cluster_gateway_memory_budget_bytes
> 0.8
`,
				summary:     "The memory budget of {{ $labels.instance }} is nearly used up",
				description: "{{ $value | humanizePercentage }} of the memory budget is taken. If it is used up, requests are refused.",
			},
			{
				name: "ClusterGatewayMemoryRefusals", severity: critical, hold: "5m",
				expr:        `sum by (use) (increase(cluster_gateway_memory_refusals_total[10m])) > 0`,
				summary:     "Requests are refused for want of memory",
				description: "The memory budget of a gateway had too little left for {{ $labels.use }}.",
			},
			{
				name: "ClusterGatewayLimitNearlyUsed", severity: warning, hold: "10m",
				expr:        `max by (cluster, limit) (cluster_gateway_limit_used_ratio) > 0.8`,
				summary:     "The {{ $labels.limit }} of cluster {{ $labels.cluster }} are nearly used up",
				description: "{{ $value | humanizePercentage }} of the limit for {{ $labels.limit }} of the cluster {{ $labels.cluster }} are used. Above the limit, requests are refused with 429.",
			},
			{
				name: "ClusterGatewayShortOfCPU", severity: warning, hold: "15m",
				expr:        `sum by (job, instance) (rate(cluster_gateway_requests_waited_for_turn_total[5m])) > 1`,
				summary:     "{{ $labels.instance }} is short of CPU time",
				description: "{{ $value | humanize }} requests per second wait until others of the same user have been answered.",
			},
			{
				// A Lease is renewed every 5 s, and its replica counts as away after 15 s.
				name: "ClusterGatewayPeerRenewalOld", severity: warning, hold: "5m",
				expr:        `max by (job, instance) (cluster_gateway_peers_oldest_renewal_seconds) > 10`,
				summary:     "A replica of the gateway is nearly away for {{ $labels.instance }}",
				description: "The last renewal of a replica's Lease that {{ $labels.instance }} has seen is {{ $value }} s old. After 15 s, requests are not forwarded to that replica any more.",
			},
			{
				name: "ClusterGatewayHealthWritesFailing", severity: warning, hold: "10m",
				expr:        `sum(increase(cluster_gateway_health_writes_total{result="failure"}[10m])) > 0`,
				summary:     "The health of clusters cannot be written",
				description: "The leader cannot write to the Secrets of clusters. Their conditions may be out of date.",
			},
			{
				name: "ClusterGatewayAPIErrors", severity: warning, hold: "10m",
				expr: fmt.Sprintf(`
  sum by (resource, verb) (%s)
/
  sum by (resource, verb) (%s)
> 0.05
`, ofGateways(`rate(apiserver_request_total{code=~"5.."}[10m])`), ofGateways(`rate(apiserver_request_total[10m])`)),
				summary:     "The gateway's own API answers with errors",
				description: "{{ $value | humanizePercentage }} of the requests {{ $labels.verb }} {{ $labels.resource }} were answered with a 5xx code. These are not requests for clusters.",
			},
		}},
	}
}
