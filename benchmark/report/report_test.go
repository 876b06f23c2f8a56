// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package report

import (
	"bytes"
	"encoding/xml"
	"io"
	"maps"
	"math"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// sample is a report in which half of the requests on one route fail. The name of the route must be
// escaped in every format that has markup.
func sample() *Report {
	r := &Report{
		Conditions: Conditions{
			Date: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Command: "benchmark --quick", Machine: "a machine", CPUs: 2, Kernel: "linux", Go: "go1",
			Versions: map[string]string{"gateway": "v1.2.3"},
		},
		Routes: []Route{{Direct, "Direct"}, {"hub-direct", "Gateway"}, {"hub-embedded", "Tunnel"}, {"<other>|", "<script>alert(1)</script>"}},
		Notes:  []string{"something was left out"},
	}
	for _, w := range []struct {
		name string
		x    float64
		unit Unit
	}{{"get", 0, Seconds}, {flowWorkload, 0, Seconds}, {"load", 1, PerSecond}, {"load", 32, PerSecond}} {
		for i, route := range r.Routes {
			s := &Series{Workload: w.name, Title: "work of " + w.name, Route: route.Name, X: w.x, Unit: w.unit}
			if w.x > 0 {
				s.XLabel = "workers"
			}
			for round := range 40 {
				v := (1 + float64(i)) * (1 + 0.1*math.Sin(float64(round)))
				if w.unit == Seconds {
					v /= 1000
				}
				s.Figures, s.Attempts = append(s.Figures, v), s.Attempts+1
			}
			if i == 3 {
				for round := range 20 {
					s.Figures[2*round] = math.NaN()
				}
				s.Failures, s.Errors = 20, map[string]int{"HTTP 503 <no agent>": 20}
			}
			r.Series = append(r.Series, s)
		}
	}
	r.Growth = []Growth{{Cost: "memory", Unit: Bytes, Counts: []float64{1, 10, 100}, Values: Figures{1e6, 2e6, 11e6}}}
	r.Facts = []Fact{{Name: RestartFact(1000), Value: 12, Unit: Seconds, Note: "how"}}
	r.Resources = []Resources{{Process: "gateway", Phase: "during", CPUSeconds: 3, RSS: 1 << 20, Goroutines: -1}}
	r.Finish()
	return r
}

func render(t *testing.T, f func(io.Writer) error) string {
	t.Helper()
	var b bytes.Buffer
	if err := f(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestEveryFormSaysTheSame checks that every format has the conditions and the errors, and no ratio
// for a failing route.
func TestEveryFormSaysTheSame(t *testing.T) {
	r := sample()
	for name, form := range map[string]func(io.Writer) error{
		"text": r.Text, "markdown": r.Markdown, "json": r.JSON, "benchstat": r.Benchstat, "html": r.HTML,
	} {
		got := render(t, form)
		for _, want := range []string{"v1.2.3", "benchmark --quick", "20 of 40"} {
			if !strings.Contains(got, want) {
				t.Errorf("%s does not contain %q", name, want)
			}
		}
		if at := strings.Index(got, "20 of 40"); at > len(got)/3 {
			t.Errorf("%s reports a failing route only at %d of %d", name, at, len(got))
		}
	}
}

func TestFailingRouteHasNoRatio(t *testing.T) {
	r := sample()
	s := r.Find("get", "<other>|", 0)
	if s.ToDirect != nil || s.ratioCell() != "FAILS" {
		t.Errorf("%+v, %s", s.ToDirect, s.ratioCell())
	}
	if ok := r.Find("get", "hub-direct", 0); ok.ToDirect == nil || math.Abs(ok.ToDirect.Ratio.Value-2) > 1e-9 {
		t.Errorf("a route that takes twice as long: %+v", ok.ToDirect)
	}
	table := r.predecessorTable()
	if table.Rows[0][4] != "FAILS" || table.Rows[0][1] != "0.0009s" {
		t.Errorf("%v", table.Rows)
	}
}

// TestTargetsForManyClusters shows the targets that the default run does not measure only if they
// were measured.
func TestTargetsForManyClusters(t *testing.T) {
	r := sample()
	verdicts := func() map[string]string {
		found := map[string]string{}
		for _, row := range r.targetTable().Rows {
			if strings.Contains(row[0], "9,500") || strings.Contains(row[0], "10,000 clusters") || strings.Contains(row[0], "10,000 idle") {
				found[row[0]] = row[1] + " " + row[3]
			}
		}
		return found
	}
	if got := verdicts(); len(got) > 0 {
		t.Errorf("not measured, but shown: %v", got)
	}
	r.Facts = append(r.Facts,
		Fact{Name: FleetMemoryFact(LargeFleet), Value: 2.1 * (1 << 30), Unit: Bytes},
		Fact{Name: RestartFact(LargeFleet), Value: 85, Unit: Seconds},
		Fact{Name: FleetMemoryFact(10_000), Value: 2.1 * (1 << 30), Unit: Bytes},
	)
	want := map[string]string{
		"gateway's resident memory with 9,500 idle clusters (95 % of the target for 10,000)":        "≤ 2140 MiB MISSED",
		"gateway restart with 9,500 clusters, until all are served (95 % of the target for 10,000)": "≤ 85.50 s met",
		"gateway's resident memory with 10,000 idle clusters":                                       "≤ 2253 MiB met",
	}
	if got := verdicts(); !maps.Equal(got, want) {
		t.Errorf("%v; wanted %v", got, want)
	}
}

func TestTargets(t *testing.T) {
	r := sample()
	verdicts := map[string]string{}
	for _, row := range r.targetTable().Rows {
		verdicts[row[0]] = row[3]
	}
	for what, want := range map[string]string{
		"GET, p50, hub, direct cluster":                             "met",    // 2 ≤ 2.5
		"ConfigMap flow, p50, hub, tunnel against direct cluster":   "MISSED", // 3/2
		"32 workers, rate, hub, embedded tunnel":                    "met",    // 3 ≥ 0.33
		"gateway restart with 1,000 clusters, until all are served": "met",
		"GET, p50, own endpoint, embedded tunnel":                   "", // not measured
	} {
		if verdicts[what] != want {
			t.Errorf("%s: %q, want %q", what, verdicts[what], want)
		}
	}
}

// TestPageNeedsNothingElse checks that the page has no address and no script, and that the name of
// a route is escaped.
func TestPageNeedsNothingElse(t *testing.T) {
	page := render(t, sample().HTML)
	if strings.Contains(page, "<script") || strings.Contains(page, "<other>") {
		t.Error("the page has a script, or an unescaped name")
	}
	namespaces := regexp.MustCompile(`xmlns(:xlink)?="[^"]*"`)
	if address := regexp.MustCompile(`(?i)(src|href|url)\s*[=(]|https?://`).FindString(namespaces.ReplaceAllString(page, "")); address != "" {
		t.Errorf("the page refers to another resource: %q", address)
	}
	if n := strings.Count(page, "<svg"); n != 4 {
		t.Errorf("%d plots, want 4: two latencies, the rate and the scale", n)
	}
	if strings.Contains(page, textColorInSVG) || !strings.Contains(page, "currentColor") {
		t.Error("the plots' text does not have the page's color")
	}
	decoder := xml.NewDecoder(strings.NewReader(page))
	decoder.Strict, decoder.AutoClose, decoder.Entity = false, xml.HTMLAutoClose, xml.HTMLEntity
	for {
		if _, err := decoder.Token(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatalf("the page's markup: %v", err)
		}
	}
}

// TestTablesAreRectangular checks that each row has as many cells as the header, also in Markdown.
func TestTablesAreRectangular(t *testing.T) {
	r := sample()
	for _, table := range r.Tables() {
		for _, row := range table.Rows {
			if len(row) != len(table.Header) {
				t.Errorf("%s: a row of %d cells under a header of %d: %q", table.Title, len(row), len(table.Header), row)
			}
		}
	}
	cells := 0
	for line := range strings.Lines(render(t, r.Markdown)) {
		if !strings.HasPrefix(line, "|") {
			cells = 0
			continue
		}
		n := strings.Count(strings.ReplaceAll(line, `\|`, ""), "|")
		if cells != 0 && n != cells {
			t.Errorf("a row of %d cells after one of %d: %s", n, cells, line)
		}
		cells = n
	}
}

func TestJSONKeepsEveryFigure(t *testing.T) {
	r := sample()
	back, err := Read(strings.NewReader(render(t, r.JSON)))
	if err != nil {
		t.Fatal(err)
	}
	back.Finish()
	a, b := r.Find("get", "hub-embedded", 0), back.Find("get", "hub-embedded", 0)
	if math.Abs(a.Summary.P50-b.Summary.P50) > 1e-6 || a.Summary.N != b.Summary.N {
		t.Errorf("%+v became %+v", a.Summary, b.Summary)
	}
	if !math.IsNaN(back.Find("get", "<other>|", 0).Figures[0]) {
		t.Error("a failed round has a figure")
	}
}

// TestBenchstatLines checks the syntax of benchstat's parser: a name, a count, and pairs of value
// and unit.
func TestBenchstatLines(t *testing.T) {
	line := regexp.MustCompile(`^Benchmark[A-Z]\S* 1 [0-9.]+ \S+$`)
	n := 0
	for got := range strings.Lines(render(t, sample().Benchstat)) {
		if strings.HasPrefix(got, "Benchmark") {
			n++
			if !line.MatchString(strings.TrimSpace(got)) {
				t.Errorf("%q", got)
			}
			if strings.Contains(got, "<other>") {
				t.Error("a failing route is included")
			}
		}
	}
	if n != 4*3*40 {
		t.Errorf("%d lines", n)
	}
}

func TestWarnings(t *testing.T) {
	quiet := sample()
	quiet.Series = quiet.Series[:3]
	if w := quiet.Warnings(); len(w) != 0 {
		t.Errorf("a run without problems has the warnings %q", w)
	}
	quiet.Interrupted, quiet.Conditions.ForeignCPU = true, 0.5
	if w := strings.Join(quiet.Warnings(), "\n"); !strings.Contains(w, "INTERRUPTED") || !strings.Contains(w, "50 %") {
		t.Errorf("%q", w)
	}
	for i := range quiet.Series[0].Figures { // the direct route becomes slower during the run
		quiet.Series[0].Figures[i] *= 1 + float64(i)/10
	}
	quiet.Finish()
	if w := strings.Join(quiet.Warnings(), "\n"); !strings.Contains(w, "first and its last third") {
		t.Errorf("%q", w)
	}
}

// TestInterruptedRunsCanBeDrawn: with one point, one round, or identical figures, the range of a
// plot is empty.
func TestInterruptedRunsCanBeDrawn(t *testing.T) {
	r := sample()
	r.Series = r.Series[:9] // GET, ConfigMaps, and one route with one number of workers
	for _, s := range r.Series[:4] {
		s.Figures = s.Figures[:1]
	}
	for _, s := range r.Series[4:8] {
		for i := range s.Figures {
			s.Figures[i] = 0.001
		}
	}
	r.Growth[0].Counts, r.Growth[0].Values = r.Growth[0].Counts[:1], r.Growth[0].Values[:1]
	render(t, r.HTML)
	for _, f := range r.Figures() {
		if _, err := f.SVG(false); err != nil {
			t.Error(err)
		}
	}
	render(t, (&Report{}).HTML)
}

func TestFormat(t *testing.T) {
	for want, got := range map[string]string{
		"1.84 ms": Seconds.Format(0.00184), "250 µs": Seconds.Format(0.00025), "1.50 s": Seconds.Format(1.5),
		"1,550/s": PerSecond.Format(1550), "250.0 KiB": Bytes.Format(250 << 10), "–": Bytes.Format(math.NaN()),
		"100 Mbit/s": formatX(BandwidthLabel, 12.5e6), "50ms": formatX(RTTLabel, 0.05), "1,000 watchers": formatX("watchers", 1000),
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// TestOverview checks that one table has all work of the report's routes, and that the work of
// other routes is in a table of its own.
func TestOverview(t *testing.T) {
	r := sample()
	for i, name := range []string{Direct, WithAgent, Forwarded} {
		s := &Series{Workload: GetReplicas, Title: "GET of replicas", Route: name, Unit: Seconds, Attempts: 300}
		for round := range 300 {
			s.Figures = append(s.Figures, float64(i+1)*(1+0.1*math.Sin(float64(round))))
		}
		r.Series = append(r.Series, s)
	}
	r.Series = append(r.Series, &Series{Workload: "execs", Title: "exec true", Route: Direct, Unit: Seconds, Figures: Figures{0.5}, Attempts: 1})
	r.Finish()
	tables := map[string]Table{}
	for _, table := range r.Tables() {
		if _, double := tables[table.Title]; double {
			t.Errorf("two tables have the title %q", table.Title)
		}
		tables[table.Title] = table
	}
	all := tables["Overview, p50"]
	if !slices.Equal(all.Header[1:], []string{Direct, "hub-direct", "hub-embedded", "<other>|"}) {
		t.Fatalf("%q", all.Header)
	}
	rows := map[string][]string{}
	for _, row := range all.Rows {
		rows[row[0]] = row[1:]
	}
	if len(rows) != 5 || rows["GET of replicas"] != nil {
		t.Errorf("%q", rows)
	}
	get := rows["work of get"]
	if get[0] != "1.01 ms" || !strings.HasPrefix(get[1], "2.00 [") || !strings.HasPrefix(get[2], "3.00 [") || get[3] != "FAILS" {
		t.Errorf("%q", get)
	}
	if load := rows["work of load: 32 workers"]; !strings.HasSuffix(load[0], "/s") || !strings.HasPrefix(load[2], "3.00 [") {
		t.Errorf("%q", load)
	}
	if got := rows["exec true"]; !slices.Equal(got, []string{"500 ms", "–", "–", "–"}) {
		t.Errorf("%q", got)
	}
	others := tables["Overview, p50: own-with-agent, own-forwarded"]
	if len(others.Rows) != 1 || !strings.HasPrefix(others.Rows[0][3], "3.00 [") {
		t.Errorf("%q", others.Rows)
	}
	if p99 := tables["Overview, p99: own-with-agent, own-forwarded"]; len(p99.Rows) != 1 || !strings.Contains(p99.Rows[0][2], " / ") {
		t.Errorf("%q", p99.Rows)
	}
	if _, few := tables["Overview, p99"]; few {
		t.Error("a 99th percentile of 40 values")
	}
}
