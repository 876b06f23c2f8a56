// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/promql/parser"
)

// kubernetesMetrics are the metrics of libraries that rules and dashboards may use, with their
// labels.
var kubernetesMetrics = map[string][]string{
	"apiserver_request_total":       {"code", "component", "dry_run", "group", "resource", "scope", "subresource", "verb", "version"},
	"go_goroutines":                 nil,
	"leader_election_master_status": {"name"},
	"process_cpu_seconds_total":     nil,
	"process_resident_memory_bytes": nil,
}

// targetLabels are those that Prometheus adds to each series.
var targetLabels = []string{"instance", "job", "namespace", "pod"}

var metricRow = regexp.MustCompile("^\\| `([a-z_]+)` \\| (\\w+) \\| ([^|]*) \\|")

// knownMetrics returns the labels of each metric in docs/reference/metrics.md and of
// kubernetesMetrics. A histogram has three metrics.
func knownMetrics(t *testing.T) map[string][]string {
	t.Helper()
	page, err := os.ReadFile(filepath.Join(root, "docs/reference/metrics.md"))
	if err != nil {
		t.Fatal(err)
	}
	known := map[string][]string{}
	for line := range strings.Lines(string(page)) {
		m := metricRow.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		var labels []string
		if m[3] != "–" {
			labels = strings.Split(m[3], ", ")
		}
		if m[2] == "histogram" {
			known[m[1]+"_bucket"] = append([]string{"le"}, labels...)
			known[m[1]+"_sum"], known[m[1]+"_count"] = labels, labels
			continue
		}
		known[m[1]] = labels
	}
	if len(known) < 20 {
		t.Fatalf("found %d metrics only", len(known))
	}
	for name, labels := range kubernetesMetrics {
		known[name] = labels
	}
	return known
}

// check returns what is wrong with an expression: it does not parse, or it uses metrics or labels
// that do not exist. labels are those that its results can have.
func check(known map[string][]string, text string) (labels []string, problems []string) {
	expr, err := parser.NewParser(parser.Options{}).ParseExpr(text)
	if err != nil {
		return nil, []string{err.Error()}
	}
	problem := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	// of returns the labels of the series that a part of the expression selects.
	of := func(node parser.Node) []string {
		labels := slices.Clone(targetLabels)
		parser.Inspect(node, func(n parser.Node, _ []parser.Node) error {
			if v, ok := n.(*parser.VectorSelector); ok {
				labels = append(labels, known[v.Name]...)
			}
			return nil
		})
		return labels
	}
	parser.Inspect(expr, func(n parser.Node, _ []parser.Node) error {
		switch n := n.(type) {
		case *parser.VectorSelector:
			own, exists := known[n.Name]
			if !exists {
				problem("there is no metric %q", n.Name)
				break
			}
			for _, m := range n.LabelMatchers {
				if m.Name != "__name__" && !slices.Contains(own, m.Name) {
					problem("%s has no label %s", n.Name, m.Name)
				}
			}
		case *parser.AggregateExpr:
			for _, l := range n.Grouping {
				if !slices.Contains(of(n.Expr), l) {
					problem("%s: no label %s", n, l)
				}
			}
		case *parser.BinaryExpr:
			if n.VectorMatching == nil {
				break
			}
			for _, l := range n.VectorMatching.MatchingLabels {
				if !slices.Contains(of(n.LHS), l) || !slices.Contains(of(n.RHS), l) {
					problem("%s: no label %s on both sides", n, l)
				}
			}
		}
		return nil
	})
	return resultLabels(expr, of), problems
}

// resultLabels returns the labels that the results of an expression can have.
func resultLabels(expr parser.Expr, of func(parser.Node) []string) []string {
	if p, ok := expr.(*parser.ParenExpr); ok {
		return resultLabels(p.Expr, of)
	}
	if b, ok := expr.(*parser.BinaryExpr); ok {
		return resultLabels(b.LHS, of)
	}
	if c, ok := expr.(*parser.Call); ok && c.Func.Name == "absent" {
		return nil
	}
	if a, ok := expr.(*parser.AggregateExpr); ok && !a.Without && a.Op != parser.TOPK && a.Op != parser.BOTTOMK {
		return a.Grouping
	}
	return of(expr)
}

var (
	labelInAnnotation = regexp.MustCompile(`\$labels\.(\w+)`)
	labelInLegend     = regexp.MustCompile(`{{(\w+)}}`)
)

// TestExpressionsOfAlerts checks the expression of each alert, and the labels in its annotations.
func TestExpressionsOfAlerts(t *testing.T) {
	t.Parallel()
	known := knownMetrics(t)
	for _, g := range alerts() {
		for _, a := range g.alerts {
			labels, problems := check(known, a.expr)
			for _, p := range problems {
				t.Errorf("%s: %s", a.name, p)
			}
			for _, m := range labelInAnnotation.FindAllStringSubmatch(a.summary+a.description, -1) {
				if !slices.Contains(labels, m[1]) {
					t.Errorf("%s: an annotation uses the label %s; there are %v", a.name, m[1], labels)
				}
			}
		}
	}
}

// variables are values for the variables of dashboards.
var variables = strings.NewReplacer("$cluster", "edge-1", "$__rate_interval", "4m")

// TestExpressionsOfDashboards checks each query of the dashboards, as they are in the project, and
// the labels in its legend.
func TestExpressionsOfDashboards(t *testing.T) {
	t.Parallel()
	known := knownMetrics(t)
	for _, d := range dashboards() {
		data, err := os.ReadFile(filepath.Join(root, manifests, d.file))
		if err != nil {
			t.Fatal(err)
		}
		var parsed struct {
			Panels []struct {
				Title   string
				Type    string
				Targets []struct{ Expr, LegendFormat string }
			}
			Templating struct {
				List []struct{ Name, Definition string }
			}
		}
		if err := json.Unmarshal(data, &parsed); err != nil {
			t.Fatal(err)
		}
		queries := 0
		for _, p := range parsed.Panels {
			if p.Type != "row" && len(p.Targets) == 0 {
				t.Errorf("%s: %s has no query", d.file, p.Title)
			}
			for _, q := range p.Targets {
				queries++
				labels, problems := check(known, variables.Replace(q.Expr))
				for _, problem := range problems {
					t.Errorf("%s: %s: %s", d.file, p.Title, problem)
				}
				for _, m := range labelInLegend.FindAllStringSubmatch(q.LegendFormat, -1) {
					if !slices.Contains(labels, m[1]) {
						t.Errorf("%s: %s: the legend uses the label %s; there are %v", d.file, p.Title, m[1], labels)
					}
				}
			}
		}
		if queries < 10 {
			t.Errorf("%s has only %d queries", d.file, queries)
		}
		for _, v := range parsed.Templating.List {
			if m := regexp.MustCompile(`^label_values\((\w+), (\w+)\)$`).FindStringSubmatch(v.Definition); m != nil {
				if !slices.Contains(known[m[1]], m[2]) {
					t.Errorf("%s: the variable %s uses %s of %s", d.file, v.Name, m[2], m[1])
				}
			} else if v.Definition != "" {
				t.Errorf("%s: the variable %s is %s", d.file, v.Name, v.Definition)
			}
		}
	}
}

// TestCheck checks that wrong expressions are found.
func TestCheck(t *testing.T) {
	t.Parallel()
	known := knownMetrics(t)
	for text, want := range map[string]string{
		`sum(cluster_gateway_ready`:                                                          "unclosed",
		`cluster_gateway_raedy`:                                                              `no metric "cluster_gateway_raedy"`,
		`cluster_gateway_ready{name="a"}`:                                                    "no label name",
		`sum by (route) (cluster_gateway_ready)`:                                             "no label route",
		`cluster_gateway_ready and on (route) cluster_gateway_dials_total`:                   "no label route",
		`rate(cluster_gateway_dial_duration_seconds[5m])`:                                    "no metric",
		`sum by (le) (rate(cluster_gateway_dial_duration_seconds_count[5m]))`:                "no label le",
		`sum by (instance, le) (rate(cluster_gateway_dial_duration_seconds_bucket[5m]))`:     "",
		`cluster_gateway_ready and on (cluster) cluster_gateway_dials_total{route="direct"}`: "",
	} {
		_, problems := check(known, text)
		if got := strings.Join(problems, "\n"); (want == "") != (got == "") || !strings.Contains(got, want) {
			t.Errorf("%s: got %q, want %q", text, got, want)
		}
	}
}
