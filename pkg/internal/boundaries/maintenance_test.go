// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package boundaries

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"
)

// TestOnlyRotationUsesTheMaintenanceCredential shows that no other package can send anything with
// the credential that the gateway has for itself: none reads it from a cluster.
func TestOnlyRotationUsesTheMaintenanceCredential(t *testing.T) {
	t.Parallel()
	const method = "Maintenance" // of cluster.Cluster
	users := map[string]bool{}
	files, err := filepath.Glob("../../*/*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if selector, ok := n.(*ast.SelectorExpr); ok && selector.Sel.Name == method {
				users[filepath.Base(filepath.Dir(name))] = true
			}
			return true
		})
	}
	if len(users) != 1 || !users["rotation"] {
		t.Errorf("%s is called in %v, and only pkg/rotation may call it", method, users)
	}
}
