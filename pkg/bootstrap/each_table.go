// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"bytes"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
)

// clusterTable has rows of several clusters that have the same columns.
type clusterTable struct {
	columns []string
	// rows have the name of their cluster first.
	rows [][]string
}

// writeClusterTables writes the tables that kubectl printed, with a column for the cluster. Tables
// with the same columns become one. Clusters can differ, for example if they run other versions.
func writeClusterTables(w io.Writer, results []eachResult) {
	var tables []*clusterTable
	for _, r := range results {
		for _, block := range blocks(r.stdout) {
			columns, rows := parseTable(block)
			i := slices.IndexFunc(tables, func(t *clusterTable) bool { return slices.Equal(t.columns, columns) })
			if i < 0 {
				i = len(tables)
				tables = append(tables, &clusterTable{columns: columns})
			}
			for _, row := range rows {
				tables[i].rows = append(tables[i].rows, append([]string{r.cluster}, row...))
			}
		}
	}
	for i, t := range tables {
		if i > 0 {
			fmt.Fprintln(w)
		}
		t.write(w)
	}
}

func (t *clusterTable) write(w io.Writer) {
	if t.columns == nil { // lines, not cells
		fmt.Fprintln(w, "CLUSTER")
	}
	var aligned bytes.Buffer
	table := tabwriter.NewWriter(&aligned, 0, 8, 3, ' ', 0)
	if t.columns != nil {
		fmt.Fprintln(table, strings.Join(append([]string{"CLUSTER"}, t.columns...), "\t"))
	}
	for _, row := range t.rows {
		fmt.Fprintln(table, strings.Join(row, "\t"))
	}
	_ = table.Flush() // a buffer
	for line := range bytes.Lines(aligned.Bytes()) {
		fmt.Fprintln(w, string(bytes.TrimRight(line, " \n")))
	}
}

// blocks splits an output at its empty lines. For several resources, kubectl prints several tables.
func blocks(output []byte) [][]string {
	var all [][]string
	var block []string
	for line := range strings.Lines(string(output)) {
		line = strings.TrimRight(line, " \r\n")
		if line != "" {
			block = append(block, line)
			continue
		}
		if block != nil {
			all = append(all, block)
		}
		block = nil
	}
	if block != nil {
		all = append(all, block)
	}
	return all
}

var (
	// tableHeader matches the first line of a table. kubectl writes the names of columns in capitals.
	tableHeader = regexp.MustCompile(`^[A-Z][^a-z]*$`)
	// tableColumn matches the name of a column, which can have single spaces, as in NOMINATED NODE.
	tableColumn = regexp.MustCompile(`\S+( \S+)*`)
)

// parseTable returns the columns and rows of a table. A cell begins where the name of its column
// begins. Without a header, each line is a row with one cell, and there are no columns.
func parseTable(lines []string) (columns []string, rows [][]string) {
	if !tableHeader.MatchString(lines[0]) {
		for _, line := range lines {
			rows = append(rows, []string{line})
		}
		return nil, rows
	}
	var starts []int
	for _, at := range tableColumn.FindAllStringIndex(lines[0], -1) {
		starts = append(starts, len([]rune(lines[0][:at[0]])))
		columns = append(columns, lines[0][at[0]:at[1]])
	}
	for _, line := range lines[1:] {
		text, row := []rune(line), make([]string, len(starts)) // kubectl aligns characters, not bytes
		for i, start := range starts {
			end := len(text)
			if i+1 < len(starts) {
				end = min(end, starts[i+1])
			}
			if start < end {
				row[i] = strings.TrimSpace(strings.ReplaceAll(string(text[start:end]), "\t", " "))
			}
		}
		rows = append(rows, row)
	}
	return columns, rows
}
