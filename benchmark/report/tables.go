// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package report

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Table is a table that all formats show. The first column names the row.
type Table struct {
	Title  string
	Header []string
	Rows   [][]string
	// Note explains how to read it.
	Note string
}

// Tables returns all tables of the report, in order.
func (r *Report) Tables() []Table {
	var tables []Table
	for _, t := range []Table{r.predecessorTable(), r.targetTable()} {
		if len(t.Rows) > 0 {
			tables = append(tables, t)
		}
	}
	tables = append(tables, r.overviewTables()...)
	if t := r.factTable(); len(t.Rows) > 0 {
		tables = append(tables, t)
	}
	for _, w := range r.workloads() {
		tables = append(tables, workloadTable(w))
	}
	for _, t := range []Table{r.growthTable(), r.resourceTable()} {
		if len(t.Rows) > 0 {
			tables = append(tables, t)
		}
	}
	return tables
}

// flowWorkload is the workload whose results the predecessor published.
const flowWorkload = "configmap-flow"

// predecessorTable has the rows and the wording of the predecessor's table.
func (r *Report) predecessorTable() Table {
	t := Table{
		Title:  "ConfigMap flow: create, update and delete, as one figure",
		Header: []string{""},
		Rows:   [][]string{{"Fastest"}, {"Slowest"}, {"Average"}},
		Note:   "The table that the predecessor published, but without its client's limit of 5 requests per second.",
	}
	for _, route := range r.Routes {
		s := r.Find(flowWorkload, route.Name, 0)
		if s == nil {
			continue
		}
		t.Header = append(t.Header, route.Title)
		if s.Failing() || s.Summary.N == 0 {
			for i := range t.Rows {
				t.Rows[i] = append(t.Rows[i], "FAILS")
			}
			continue
		}
		t.Rows[0] = append(t.Rows[0], fmt.Sprintf("%.4fs", s.Summary.Min))
		t.Rows[1] = append(t.Rows[1], fmt.Sprintf("%.4fs", s.Summary.Max))
		t.Rows[2] = append(t.Rows[2], fmt.Sprintf("%.4fs ± %.4fs", s.Summary.Mean, s.Summary.StdDev))
	}
	if len(t.Header) == 1 {
		return Table{}
	}
	return t
}

// workloads returns the different workloads and parameters, in the order in which they were
// measured.
func (r *Report) workloads() [][]*Series {
	var groups [][]*Series
	index := map[string]int{}
	for _, s := range r.Series {
		key := s.Workload + "\x00" + strconv.FormatFloat(s.X, 'g', -1, 64)
		at, ok := index[key]
		if !ok {
			at = len(groups)
			index[key] = at
			groups = append(groups, nil)
		}
		groups[at] = append(groups[at], s)
	}
	return groups
}

func workloadTable(group []*Series) Table {
	first := group[0]
	t := Table{Title: workloadTitle(first), Header: []string{"route", "rounds", "min", "p50", "p90", "p99", "max", "mean ± deviation"}}
	sequential := first.Unit == Seconds
	if sequential {
		t.Header = append(t.Header, "rate")
	}
	t.Header = append(t.Header, "errors", "× direct [95 %]")
	for _, s := range group {
		row := []string{s.Route, strconv.Itoa(s.Summary.N)}
		if s.Summary.N == 0 {
			row = append(row, slices.Repeat([]string{"–"}, len(t.Header)-len(row)-2)...)
		} else {
			for _, v := range []float64{s.Summary.Min, s.Summary.P50, s.Summary.P90, s.Summary.P99, s.Summary.Max} {
				row = append(row, s.Unit.Format(v))
			}
			row = append(row, s.Unit.Format(s.Summary.Mean)+" ± "+s.Unit.Format(s.Summary.StdDev))
			if sequential {
				row = append(row, PerSecond.Format(1/s.Summary.Mean))
			}
		}
		t.Rows = append(t.Rows, append(row, s.errorCell(), s.ratioCell()))
	}
	return t
}

func (s *Series) errorCell() string {
	if s.Failures == 0 {
		return "0"
	}
	return fmt.Sprintf("%d of %d", s.Failures, s.Attempts)
}

func (s *Series) ratioCell() string {
	switch {
	case s.Failing():
		return "FAILS"
	case s.Route == Direct:
		return "1"
	case s.ToDirect == nil:
		return "–"
	default:
		return formatRatio(s.ToDirect.Ratio)
	}
}

func (r *Report) factTable() Table {
	t := Table{Title: "Single figures", Header: []string{"what", "figure", "how"}}
	for _, f := range r.Facts {
		t.Rows = append(t.Rows, []string{f.Name, f.Unit.Format(f.Value), f.Note})
	}
	return t
}

func (r *Report) growthTable() Table {
	t := Table{
		Title:  "How costs grow with the number of clusters",
		Header: []string{"cost"},
		Note:   "The fit is a straight line by least squares. The exponent is that of a power law through the same points: 1 is linear, 2 quadratic, 0 constant.",
	}
	counts := map[float64]bool{}
	for _, g := range r.Growth {
		for _, n := range g.Counts {
			counts[n] = true
		}
	}
	all := slices.Sorted(maps.Keys(counts))
	for _, n := range all {
		t.Header = append(t.Header, group(int64(n)))
	}
	t.Header = append(t.Header, "fit", "R²", "exponent")
	for _, g := range r.Growth {
		row := []string{g.Cost}
		for _, n := range all {
			cell := "–"
			if at := slices.Index(g.Counts, n); at >= 0 {
				cell = g.Unit.Format(g.Values[at])
			}
			row = append(row, cell)
		}
		if g.Fit == nil {
			row = append(row, "–", "–", "–")
		} else {
			row = append(row, fmt.Sprintf("%s + %s × n", g.Unit.Format(g.Fit.Fixed), g.Unit.Format(g.Fit.Each)),
				fmt.Sprintf("%.3f", g.Fit.R2), fmt.Sprintf("%.2f", g.Fit.Exponent))
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}

func (r *Report) resourceTable() Table {
	t := Table{
		Title:  "Resource usage of the processes",
		Header: []string{"process", "phase", "CPU", "memory", "peak memory", "descriptors", "goroutines"},
		Note:   "Memory is the resident set. 'during' has the highest sample of each; its CPU time is counted from 'before'.",
	}
	for _, u := range r.Resources {
		goroutines := "–"
		if u.Goroutines >= 0 {
			goroutines = group(int64(u.Goroutines))
		}
		t.Rows = append(t.Rows, []string{
			u.Process, u.Phase, fmt.Sprintf("%.1f s", u.CPUSeconds), formatBytes(float64(u.RSS)), formatBytes(float64(u.PeakRSS)),
			group(int64(u.Descriptors)), goroutines,
		})
	}
	return t
}

// Lines returns the conditions, each with its name.
func (c Conditions) Lines() [][2]string {
	lines := [][2]string{
		{"date", c.Date.UTC().Format("2006-01-02 15:04:05 UTC")},
		{"took", c.Took.Round(1e9).String()},
		{"command", c.Command},
		{"machine", fmt.Sprintf("%s, %d CPUs, %s of memory", c.Machine, c.CPUs, formatBytes(float64(c.Memory)))},
		{"system", c.Kernel + ", " + c.Go},
	}
	if c.ForeignCPU >= 0 {
		lines = append(lines, [2]string{"load", fmt.Sprintf("%.0f %% of the machine's CPU time was used, %.0f %% by something other than this benchmark", 100*c.Busy, 100*c.ForeignCPU)})
	}
	for _, name := range slices.Sorted(maps.Keys(c.Versions)) {
		lines = append(lines, [2]string{name, strings.TrimSpace(c.Versions[name])})
	}
	return lines
}
