// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// A table of the report in docs/benchmark.md is between these lines. The first names the table, and
// after a vertical bar, if only some of its rows are wanted, how they begin.
var (
	reportTable    = regexp.MustCompile(`^<!-- report: ([^|]*?)(?: \| (.*))? -->$`)
	reportTableEnd = "<!-- end of report -->"
)

// TestBenchmarkTables checks that the tables of docs/benchmark.md are those of
// docs/benchmark/report.md, so that both have the figures of one run. With -update, it writes the
// tables.
func TestBenchmarkTables(t *testing.T) {
	const file = "docs/benchmark.md"
	report, p := readPage(t, "docs/benchmark/report.md"), readPage(t, file)
	var want []string
	tables, inside := 0, false
	for _, l := range p.lines {
		m := reportTable.FindStringSubmatch(l.text)
		switch {
		case m != nil && inside:
			t.Fatalf("%s:%d: the table before has no line %q", file, l.number, reportTableEnd)
		case m != nil:
			tables++
			inside = true
			want = append(want, l.text, "")
			want = append(want, report.rowsOf(t, m[1], m[2])...)
			want = append(want, "")
		case l.text == reportTableEnd:
			inside = false
			want = append(want, l.text)
		case !inside:
			want = append(want, l.text)
		}
	}
	if inside {
		t.Fatalf("%s: the last table has no line %q", file, reportTableEnd)
	}
	if tables == 0 {
		t.Fatalf("%s has no table of the report", file)
	}
	compareGenerated(t, file, strings.Join(want, "\n")+"\n")
}

// rowsOf returns the lines of the table under a heading of the report, or of its first table, which
// has the conditions. Below the header are only the rows that begin with the prefix.
func (p page) rowsOf(t *testing.T, title, prefix string) []string {
	t.Helper()
	var rows []string
	found := title == "conditions"
	for _, l := range p.lines {
		if heading, is := strings.CutPrefix(l.text, "## "); is {
			if len(rows) > 0 {
				break
			}
			found = heading == title
			continue
		}
		if found && strings.HasPrefix(l.text, "|") && (len(rows) < 2 || strings.HasPrefix(l.text, "| "+prefix)) {
			rows = append(rows, l.text)
		} else if len(rows) > 0 && l.text == "" {
			break
		}
	}
	if len(rows) < 3 {
		t.Fatalf("%s has no table %q with rows that begin with %q: has a part of the benchmark been left out?", p.path, title, prefix)
	}
	return rows
}

// TestBenchmarkPlots checks that the plots on the page are those that the benchmark writes.
func TestBenchmarkPlots(t *testing.T) {
	p := readPage(t, "docs/benchmark.md")
	shown := map[string]bool{}
	for _, l := range p.lines {
		for _, m := range regexp.MustCompile(`!\[[^\]]*\]\(benchmark/([a-z-]+\.svg)\)`).FindAllStringSubmatch(l.text, -1) {
			shown[m[1]] = true
		}
	}
	files, err := filepath.Glob(filepath.Join(root, "docs/benchmark/*.svg"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !shown[filepath.Base(f)] {
			t.Errorf("docs/benchmark.md does not show %s", filepath.Base(f))
		}
		delete(shown, filepath.Base(f))
	}
	for name := range shown {
		if _, err := os.Stat(filepath.Join(root, "docs/benchmark", name)); err != nil {
			t.Errorf("docs/benchmark.md shows %s: %v", name, err)
		}
	}
}
