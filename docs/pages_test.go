// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package docs

import (
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// update makes the tests of generated pages write them.
var update = flag.Bool("update", false, "write the generated pages instead of comparing them")

// root is the top folder of the repository, as the tests see it.
const root = ".."

// line is one line of a page.
type line struct {
	number int
	text   string
	// code says that the line is inside a fenced block.
	code bool
}

// page is one Markdown file.
type page struct {
	// path is relative to root.
	path  string
	lines []line
}

// generated pages are written by these tests, so that their wording is that of the code.
func (p page) generated() bool {
	return strings.HasPrefix(p.path, "docs/reference/") || p.path == "docs/benchmark/report.md"
}

// pages returns every Markdown file of the repository.
func pages(t *testing.T) []page {
	t.Helper()
	var all []page
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name := entry.Name(); entry.IsDir() && (name == ".git" || name == "bin" || name == "dist" || name == "_output" || name == "benchmark-report") {
			return fs.SkipDir
		}
		if filepath.Ext(path) != ".md" {
			return nil
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		all = append(all, readPage(t, filepath.ToSlash(rel)))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 5 {
		t.Fatalf("found %d pages only", len(all))
	}
	return all
}

func readPage(t *testing.T, path string) page {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	p := page{path: path}
	fenced := false
	for i, text := range strings.Split(strings.TrimSuffix(string(data), "\n"), "\n") {
		fence := strings.HasPrefix(strings.TrimSpace(text), "```")
		p.lines = append(p.lines, line{number: i + 1, text: text, code: fenced || fence})
		if fence {
			fenced = !fenced
		}
	}
	if fenced {
		t.Errorf("%s: a fenced block is not closed", path)
	}
	return p
}

var codeSpan = regexp.MustCompile("`([^`]+)`")

// spans returns the code spans of a line outside a fenced block.
func (l line) spans() []string {
	if l.code {
		return nil
	}
	var all []string
	for _, m := range codeSpan.FindAllStringSubmatch(l.text, -1) {
		all = append(all, m[1])
	}
	return all
}

// table returns the cells of each row of the first table below a heading, without the header.
func (p page) table(t *testing.T, heading string) [][]string {
	t.Helper()
	start := slices.IndexFunc(p.lines, func(l line) bool {
		return !l.code && strings.TrimLeft(l.text, "# ") == heading && strings.HasPrefix(l.text, "#")
	})
	if start < 0 {
		t.Fatalf("%s has no heading %q", p.path, heading)
	}
	var rows [][]string
	for _, l := range p.lines[start+1:] {
		if !strings.HasPrefix(l.text, "|") {
			if len(rows) > 0 {
				break
			}
			continue
		}
		var cells []string
		for cell := range strings.SplitSeq(strings.Trim(l.text, "|"), "|") {
			cells = append(cells, strings.TrimSpace(cell))
		}
		rows = append(rows, cells)
	}
	if len(rows) < 3 {
		t.Fatalf("%s has no table below %q", p.path, heading)
	}
	return rows[2:]
}

// compareGenerated compares a page with what is generated for it, or writes it.
func compareGenerated(t *testing.T, path, want string) {
	t.Helper()
	file := filepath.Join(root, path)
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) == want {
		return
	}
	gotLines, wantLines := strings.Split(string(got), "\n"), strings.Split(want, "\n")
	for i, w := range wantLines {
		if i >= len(gotLines) || gotLines[i] != w {
			t.Fatalf("%s is not up to date: run go test ./docs -update. Line %d must be:\n%s", path, i+1, w)
		}
	}
	t.Fatalf("%s is not up to date: run go test ./docs -update", path)
}
