// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package report

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"unicode/utf8"
)

const title = "Cluster Gateway: end-to-end benchmark"

// Text writes the report for a terminal.
func (r *Report) Text(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", title)
	for _, warning := range r.Warnings() {
		fmt.Fprintf(&b, "!! %s\n", warning)
	}
	fmt.Fprintln(&b)
	for _, line := range r.Conditions.Lines() {
		fmt.Fprintf(&b, "%-22s %s\n", line[0], line[1])
	}
	for _, note := range r.Notes {
		fmt.Fprintf(&b, "note: %s\n", note)
	}
	for _, t := range r.Tables() {
		fmt.Fprintf(&b, "\n== %s\n", t.Title)
		t.text(&b)
		if t.Note != "" {
			fmt.Fprintf(&b, "(%s)\n", t.Note)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (t Table) text(b *strings.Builder) {
	widths := make([]int, len(t.Header))
	for _, row := range append([][]string{t.Header}, t.Rows...) {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for _, row := range append([][]string{t.Header}, t.Rows...) {
		line := ""
		for i, cell := range row {
			line += cell + strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+2)
		}
		fmt.Fprintln(b, strings.TrimRight(line, " "))
	}
}

// Markdown writes the report as a Markdown page.
func (r *Report) Markdown(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "# %s\n\n", title)
	for _, warning := range r.Warnings() {
		fmt.Fprintf(&b, "> **%s**\n>\n", escape(warning))
	}
	fmt.Fprintln(&b)
	Table{Header: []string{"condition", ""}, Rows: conditionRows(r.Conditions)}.markdown(&b)
	for _, note := range r.Notes {
		fmt.Fprintf(&b, "\n- %s", escape(note))
	}
	fmt.Fprintln(&b)
	for _, t := range r.Tables() {
		fmt.Fprintf(&b, "\n## %s\n\n", escape(t.Title))
		t.markdown(&b)
		if t.Note != "" {
			fmt.Fprintf(&b, "\n%s\n", escape(t.Note))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func conditionRows(c Conditions) [][]string {
	var rows [][]string
	for _, line := range c.Lines() {
		rows = append(rows, []string{line[0], line[1]})
	}
	return rows
}

func (t Table) markdown(b *strings.Builder) {
	line := func(cells []string) {
		for _, cell := range cells {
			b.WriteString("| " + escape(cell) + " ")
		}
		b.WriteString("|\n")
	}
	line(t.Header)
	line(slices.Repeat([]string{"---"}, len(t.Header)))
	for _, row := range t.Rows {
		line(row)
	}
}

func escape(s string) string {
	return strings.NewReplacer("|", "\\|", "\n", " ", "<", "&lt;").Replace(s)
}

// Read reads the output of JSON.
func Read(r io.Reader) (*Report, error) {
	report := &Report{}
	if err := json.NewDecoder(r).Decode(report); err != nil {
		return nil, err
	}
	return report, nil
}

// JSON writes everything, including every single figure.
func (r *Report) JSON(w io.Writer) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", " ")
	return encoder.Encode(struct {
		Warnings []string `json:"warnings"`
		*Report
	}{r.Warnings(), r})
}

// benchstatLines is the maximum number of lines for one series. Benchstat compares distributions,
// and a hundred values are enough for that.
const benchstatLines = 100

// Benchstat writes the input of golang.org/x/perf/cmd/benchstat, which can compare two runs, or two
// routes of one run:
//
//	benchstat -row .name -col /route benchmark.txt
//	benchstat before.txt after.txt
//
// A series with many rounds is divided into a hundred groups of consecutive rounds, each with its
// median. Failing series are left out.
func (r *Report) Benchstat(w io.Writer) error {
	var b strings.Builder
	for _, warning := range r.Warnings() {
		fmt.Fprintf(&b, "# %s\n", strings.Join(strings.Fields(warning), " "))
	}
	for _, line := range r.Conditions.Lines() {
		fmt.Fprintf(&b, "%s: %s\n", strings.ReplaceAll(line[0], " ", "-"), line[1])
	}
	for _, s := range r.Series {
		if s.Failing() {
			fmt.Fprintf(&b, "# left out because it fails: %s/route=%s\n", benchmarkName(s), s.Route)
			continue
		}
		for _, part := range parts(s.Figures, benchstatLines) {
			switch {
			case s.Unit == Seconds:
				fmt.Fprintf(&b, "%s/route=%s 1 %.0f ns/op\n", benchmarkName(s), s.Route, 1e9*part)
			case s.Unit == BytesPerSecond:
				fmt.Fprintf(&b, "%s/route=%s 1 %.2f MB/s\n", benchmarkName(s), s.Route, part/1e6)
			default:
				fmt.Fprintf(&b, "%s/route=%s 1 %.1f requests/s\n", benchmarkName(s), s.Route, part)
			}
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// benchmarkName returns a name in the style of Go benchmarks: BenchmarkConfigmapFlow,
// BenchmarkLoad/workers=32.
func benchmarkName(s *Series) string {
	name := "Benchmark"
	for part := range strings.SplitSeq(s.Workload, "-") {
		if part != "" {
			name += strings.ToUpper(part[:1]) + part[1:]
		}
	}
	if s.XLabel != "" {
		name += fmt.Sprintf("/%s=%s", strings.ReplaceAll(s.XLabel, " ", "-"), strings.Fields(strings.ReplaceAll(formatX(s.XLabel, s.X), ",", ""))[0])
	}
	return name
}

// parts returns the medians of at most n groups of consecutive successful rounds.
func parts(figures []float64, n int) []float64 {
	var valid []float64
	for _, f := range figures {
		if !math.IsNaN(f) {
			valid = append(valid, f)
		}
	}
	n = min(n, len(valid))
	medians := make([]float64, n)
	for i := range n {
		part := slices.Clone(valid[i*len(valid)/n : (i+1)*len(valid)/n])
		slices.Sort(part)
		medians[i] = part[len(part)/2]
	}
	return medians
}
