// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package report

import (
	"slices"
	"strings"
)

// enoughForP99 is the number of values from which a 99th percentile means something.
const enoughForP99 = 200

// overviewTables compares the routes over all workloads: a row for each workload and a column for
// each route. Workloads that were measured by the same routes are in one table. Those of the
// report's own routes come first.
func (r *Report) overviewTables() []Table {
	var tables []Table
	rest := r.workloads()
	for _, own := range []bool{true, false} {
		for len(rest) > 0 {
			at := slices.IndexFunc(rest, func(w []*Series) bool { return own == r.ownRoutes(w) })
			if at < 0 {
				break
			}
			routes := r.columns(rest[at], own)
			var same, others [][]*Series
			for _, w := range rest {
				if own == r.ownRoutes(w) && slices.Equal(routes, r.columns(w, own)) {
					same = append(same, w)
				} else {
					others = append(others, w)
				}
			}
			rest = others
			tables = append(tables, ratioTable(routes, same, own))
			if t := percentileTable(routes, same, own); len(t.Rows) > 0 {
				tables = append(tables, t)
			}
		}
	}
	return tables
}

// ownRoutes reports whether all routes of a workload are routes of the report, not of one part
// only.
func (r *Report) ownRoutes(workload []*Series) bool {
	return !slices.ContainsFunc(workload, func(s *Series) bool {
		return !slices.ContainsFunc(r.Routes, func(route Route) bool { return route.Name == s.Route })
	})
}

// columns returns the routes that a workload's table has: all of the report, or its own ones.
func (r *Report) columns(workload []*Series, own bool) []string {
	var names []string
	if own {
		for _, route := range r.Routes {
			names = append(names, route.Name)
		}
		return names
	}
	for _, s := range workload {
		names = append(names, s.Route)
	}
	return names
}

// overviewTitle tells the tables of different routes apart.
func overviewTitle(what string, routes []string, own bool) string {
	if own {
		return what
	}
	return what + ": " + strings.Join(slices.DeleteFunc(slices.Clone(routes), func(name string) bool { return name == Direct }), ", ")
}

func ratioTable(routes []string, workloads [][]*Series, own bool) Table {
	t := Table{Title: overviewTitle("Overview, p50", routes, own), Header: append([]string{"p50; × direct [95 %]"}, routes...)}
	for _, w := range workloads {
		t.Rows = append(t.Rows, overviewRow(w, routes, func(s *Series) string {
			if (s.Route == Direct || s.ToDirect == nil) && !s.Failing() {
				return s.Unit.Format(s.Summary.P50)
			}
			return s.ratioCell()
		}))
	}
	return t
}

func percentileTable(routes []string, workloads [][]*Series, own bool) Table {
	t := Table{Title: overviewTitle("Overview, p99", routes, own), Header: append([]string{"p50 / p99"}, routes...)}
	for _, w := range workloads {
		if w[0].Unit != Seconds || w[0].Summary.N < enoughForP99 {
			continue
		}
		t.Rows = append(t.Rows, overviewRow(w, routes, func(s *Series) string {
			if s.Failing() {
				return s.ratioCell()
			}
			return s.Unit.Format(s.Summary.P50) + " / " + s.Unit.Format(s.Summary.P99)
		}))
	}
	return t
}

func overviewRow(workload []*Series, routes []string, cell func(*Series) string) []string {
	row := []string{workloadTitle(workload[0])}
	for _, name := range routes {
		at := slices.IndexFunc(workload, func(s *Series) bool { return s.Route == name })
		if at < 0 {
			row = append(row, "–")
			continue
		}
		row = append(row, cell(workload[at]))
	}
	return row
}

// workloadTitle returns the title of a series' workload with its parameter.
func workloadTitle(s *Series) string {
	if s.XLabel == "" {
		return s.Title
	}
	return s.Title + ": " + formatX(s.XLabel, s.X)
}
