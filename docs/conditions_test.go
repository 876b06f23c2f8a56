// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package docs

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// TestConditionsAreDocumented compares docs/reference/conditions.md with the constants of the API
// package.
func TestConditionsAreDocumented(t *testing.T) {
	constants := stringConstants(t, "pkg/apis/cluster/v1alpha1")
	p := readPage(t, "docs/reference/conditions.md")
	documented := map[string]bool{}
	for _, l := range p.lines {
		for _, span := range l.spans() {
			documented[span] = true
		}
	}
	known := map[string]bool{}
	found := 0
	for name, value := range constants {
		if strings.HasPrefix(name, "Reason") || strings.HasPrefix(name, "Condition") || strings.HasPrefix(name, "Cause") {
			found++
			known[value] = true
			if !documented[value] {
				t.Errorf("%s does not say what %s means", p.path, value)
			}
		}
	}
	if found < 20 {
		t.Fatalf("found %d constants only", found)
	}
	for _, heading := range []string{"Ready", "TunnelConnected", "CredentialValid", "CertificateValid", "CredentialsSeparate", "Causes in a Status"} {
		for _, row := range p.table(t, heading) {
			if value := strings.Trim(row[0], "`"); !known[value] {
				t.Errorf("%s documents %s, which does not exist", p.path, value)
			}
		}
	}
}

// stringConstants are the constants of a package that are written as a string literal.
func stringConstants(t *testing.T, folder string) map[string]string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, folder, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, name := range files {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range file.Decls {
			gen, ok := decl.(*ast.GenDecl)
			if !ok || gen.Tok != token.CONST {
				continue
			}
			for _, spec := range gen.Specs {
				spec := spec.(*ast.ValueSpec)
				for i, ident := range spec.Names {
					if i >= len(spec.Values) {
						continue
					}
					if literal, ok := spec.Values[i].(*ast.BasicLit); ok && literal.Kind == token.STRING {
						all[ident.Name], _ = strconv.Unquote(literal.Value)
					}
				}
			}
		}
	}
	return all
}
