// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Command observability generates the Prometheus rules and the Grafana dashboards of the gateway.
//
//	go run -C hack/tools/observability .
//
// The alerts are in alerts.go, the dashboards in dashboards.go. The generated files are in
// manifests/gateway/monitoring and in charts/cluster-gateway/files. The tests check that they are
// up to date, that each expression uses only metrics and labels of docs/reference/metrics.md, and
// that each alert fires and resolves when it should.
package main
