// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package docs

import (
	"go/ast"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// testsOnly are packages that no program contains. The picture leaves them out.
var testsOnly = map[string]bool{"pkg/internal/boundaries": true, "pkg/dialer/dialertest": true}

// TestArchitecturePicture checks the picture of the packages against the rules of
// pkg/internal/boundaries: it shows each package once, and a package may import only packages on
// lines below its own.
func TestArchitecturePicture(t *testing.T) {
	rules := importRules(t)
	packagePath := regexp.MustCompile(`(?:cmd|pkg)/[\w/-]+|\bmanifests\b`)
	layer := map[string]int{}
	inPicture := false
	for _, l := range readPage(t, "docs/architecture.md").lines {
		if strings.HasPrefix(l.text, "## ") {
			inPicture = l.text == "## Packages"
		}
		if !inPicture || !l.code {
			continue
		}
		for _, name := range packagePath.FindAllString(l.text, -1) {
			if _, twice := layer[name]; twice {
				t.Errorf("docs/architecture.md:%d: the picture shows %s twice", l.number, name)
			}
			layer[name] = l.number
		}
	}
	for name, imports := range rules {
		if testsOnly[name] {
			continue
		}
		if layer[name] == 0 {
			t.Errorf("docs/architecture.md: the picture does not show %s", name)
			continue
		}
		for _, imported := range imports {
			if layer[imported] <= layer[name] {
				t.Errorf("docs/architecture.md: the picture shows %s, which %s may import, not below it", imported, name)
			}
		}
	}
	for name := range layer {
		if _, ok := rules[name]; !ok && name != "manifests" {
			t.Errorf("docs/architecture.md: the picture contains %s, which has no rule in pkg/internal/boundaries", name)
		}
	}
}

// TestArchitectureTable checks that the table of docs/architecture.md has each package, with the
// imports that the rules allow. With -update, it writes the imports.
func TestArchitectureTable(t *testing.T) {
	rules := importRules(t)
	const file = "docs/architecture.md"
	p := readPage(t, file)
	seen := map[string]bool{}
	for _, row := range p.table(t, "Packages") {
		folder := codeSpan.FindStringSubmatch(row[0])[1]
		seen[folder] = true
		allowed, ok := rules[folder]
		if !ok {
			t.Errorf("%s: the table contains %s, which has no rule in pkg/internal/boundaries", file, folder)
			continue
		}
		want := "–"
		if len(allowed) > 0 {
			var names []string
			for _, p := range allowed {
				names = append(names, shortName(p))
			}
			slices.Sort(names)
			want = strings.Join(names, ", ")
		}
		if *update {
			setLastCell(p, folder, want)
		} else if row[3] != want {
			t.Errorf("%s: %s may import %q, but the table contains %q: run go test ./docs -update", file, folder, want, row[3])
		}
	}
	for name := range rules {
		if !seen[name] {
			t.Errorf("%s: the table does not contain %s", file, name)
		}
	}
	if *update {
		var text strings.Builder
		for _, l := range p.lines {
			text.WriteString(l.text + "\n")
		}
		if err := os.WriteFile(filepath.Join(root, file), []byte(text.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// setLastCell changes the row of a package in the first table of the page. Later tables also have
// rows that begin with a package.
func setLastCell(p page, folder, text string) {
	for i, l := range p.lines {
		if strings.HasPrefix(l.text, "| `"+folder+"` |") {
			cells := strings.Split(strings.Trim(l.text, "|"), "|")
			cells[len(cells)-1] = " " + text + " "
			p.lines[i].text = "|" + strings.Join(cells, "|") + "|"
			return
		}
	}
}

// shortName is the name of a package in the table.
func shortName(p string) string {
	if p == "pkg/apis/cluster/v1alpha1" {
		return "apis"
	}
	return path.Base(p)
}

// importRules reads the rules of pkg/internal/boundaries: which packages of ours each package may
// import. They are read from the source, because docs lies outside the tree of that internal
// package.
func importRules(t *testing.T) map[string][]string {
	t.Helper()
	const folder = "pkg/internal/boundaries"
	constants := stringConstants(t, folder)
	rules := map[string][]string{}
	for _, s := range goFiles(t) {
		if path.Dir(s.path) != folder {
			continue
		}
		for _, decl := range s.file.Decls {
			if f, ok := decl.(*ast.FuncDecl); !ok || f.Name.Name != "MayImport" {
				continue
			}
			ast.Inspect(decl, func(n ast.Node) bool {
				pair, ok := n.(*ast.KeyValueExpr)
				if !ok {
					return true
				}
				name := stringValue(t, constants, pair.Key)
				rules[name] = []string{}
				for _, value := range pair.Value.(*ast.CompositeLit).Elts {
					rules[name] = append(rules[name], stringValue(t, constants, value))
				}
				return false
			})
		}
	}
	if len(rules) < 10 {
		t.Fatalf("found only %d rules", len(rules))
	}
	return rules
}

// stringValue returns the value of a literal or of a constant.
func stringValue(t *testing.T, constants map[string]string, expr ast.Expr) string {
	t.Helper()
	switch x := expr.(type) {
	case *ast.BasicLit:
		s, err := strconv.Unquote(x.Value)
		if err != nil {
			t.Fatal(err)
		}
		return s
	case *ast.Ident:
		if s, ok := constants[x.Name]; ok {
			return s
		}
	}
	t.Fatal("the rules of pkg/internal/boundaries are not made of literals and constants")
	return ""
}
