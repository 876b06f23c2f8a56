// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package docs

import (
	"go/ast"
	"path"
	"regexp"
	"strings"
	"testing"
)

var (
	fieldVersion = regexp.MustCompile(`^v\d+\.\d+\.\d+(?:$|[,:] )`)
	fieldTests   = regexp.MustCompile("^`([a-z0-9/]+)`: (`Test\\w+`(?:, `Test\\w+`)*)$")
)

// TestFieldPage checks each row of docs/field.md: it has a version, and the tests that it names are
// in the folders that it names.
func TestFieldPage(t *testing.T) {
	exists := tests(t)
	p := readPage(t, "docs/field.md")
	rows := 0
	for _, heading := range []string{"Rights", "Requests", "Clusters, Secrets and kubeconfigs", "Running the gateway"} {
		for _, row := range p.table(t, heading) {
			rows++
			if len(row) != 3 || row[0] == "" {
				t.Errorf("%s: the row %q must have three cells", p.path, row)
				continue
			}
			if !fieldVersion.MatchString(row[1]) {
				t.Errorf("%s: %q does not begin with a version", p.path, row[1])
			}
			for _, group := range strings.Split(row[2], "; ") {
				m := fieldTests.FindStringSubmatch(group)
				if m == nil {
					t.Errorf("%s: %q is not a folder and its tests", p.path, group)
					continue
				}
				for _, name := range codeSpan.FindAllStringSubmatch(m[2], -1) {
					if !exists[m[1]+" "+name[1]] {
						t.Errorf("%s: there is no %s in %s", p.path, name[1], m[1])
					}
				}
			}
		}
	}
	if rows < 20 {
		t.Errorf("%s has %d rows only", p.path, rows)
	}
}

// tests are all tests and fuzz tests of the project: folder, space, name.
func tests(t *testing.T) map[string]bool {
	t.Helper()
	exists := map[string]bool{}
	for _, s := range goFiles(t) {
		for _, decl := range s.file.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil && strings.HasSuffix(s.path, "_test.go") {
				exists[path.Dir(s.path)+" "+f.Name.Name] = true
			}
		}
	}
	return exists
}

// TestSecurityPage checks that the tests in the tables of docs/security.md are in the folders that
// the table names.
func TestSecurityPage(t *testing.T) {
	exists := tests(t)
	p := readPage(t, "docs/security.md")
	named := regexp.MustCompile(`((?:Test|Fuzz)\w+(?:, (?:Test|Fuzz)\w+)*) in ` + "`" + `([\w/]+)` + "`")
	rows := 0
	for _, heading := range []string{"Attackers", "Published faults of similar products"} {
		for _, row := range p.table(t, heading) {
			rows++
			groups := named.FindAllStringSubmatch(row[len(row)-1], -1)
			if len(groups) == 0 {
				t.Errorf("%s: the row %q names no test", p.path, row)
			}
			for _, group := range groups {
				for _, name := range strings.Split(group[1], ", ") {
					if !exists[group[2]+" "+name] {
						t.Errorf("%s: there is no %s in %s", p.path, name, group[2])
					}
				}
			}
		}
	}
	if rows < 15 {
		t.Errorf("%s has %d rows only", p.path, rows)
	}
}
