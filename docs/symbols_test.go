// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package docs

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const module = "github.com/oam-dev/cluster-gateway"

// source is one parsed Go file.
type source struct {
	// path is relative to root.
	path string
	fset *token.FileSet
	file *ast.File
	text []byte
}

// generated says that a program wrote the file.
func (s source) generated() bool { return ast.IsGenerated(s.file) }

// goFiles parses every Go file of the repository. It reads syntax only: the test stays fast, and
// depends on no build.
func goFiles(t *testing.T) []source {
	t.Helper()
	var all []source
	for _, folder := range []string{"benchmark", "cmd", "docs", "hack", "manifests", "pkg", "test"} {
		err := filepath.WalkDir(filepath.Join(root, folder), func(path string, entry os.DirEntry, err error) error {
			if err != nil || entry.IsDir() || filepath.Ext(path) != ".go" {
				return err
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			s := source{path: strings.TrimPrefix(filepath.ToSlash(path), root+"/"), fset: token.NewFileSet(), text: text}
			if s.file, err = parser.ParseFile(s.fset, path, text, parser.ParseComments|parser.SkipObjectResolution); err != nil {
				return err
			}
			all = append(all, s)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(all) < 100 {
		t.Fatalf("found %d Go files only", len(all))
	}
	return all
}

// symbols are what a package declares: Name, and Type.Member for methods, fields and the methods of
// interfaces.
type symbols map[string]bool

func (s symbols) add(file *ast.File) {
	for _, decl := range file.Decls {
		switch d := decl.(type) {
		case *ast.FuncDecl:
			name := d.Name.Name
			if d.Recv != nil {
				name = receiver(d.Recv.List[0].Type) + "." + name
			}
			s[name] = true
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				switch spec := spec.(type) {
				case *ast.ValueSpec:
					for _, name := range spec.Names {
						s[name.Name] = true
					}
				case *ast.TypeSpec:
					s[spec.Name.Name] = true
					s.members(spec.Name.Name, spec.Type)
				}
			}
		}
	}
}

func (s symbols) members(of string, expr ast.Expr) {
	var fields *ast.FieldList
	switch x := expr.(type) {
	case *ast.StructType:
		fields = x.Fields
	case *ast.InterfaceType:
		fields = x.Methods
	default:
		return
	}
	for _, field := range fields.List {
		for _, name := range field.Names {
			s[of+"."+name.Name] = true
		}
		if len(field.Names) == 0 {
			s[of+"."+embedded(field.Type)] = true
		}
	}
}

// embedded is the name under which a type is embedded.
func embedded(expr ast.Expr) string {
	if s, ok := expr.(*ast.SelectorExpr); ok {
		return s.Sel.Name
	}
	return receiver(expr)
}

func receiver(expr ast.Expr) string {
	for {
		switch x := expr.(type) {
		case *ast.StarExpr:
			expr = x.X
		case *ast.IndexExpr:
			expr = x.X
		case *ast.IndexListExpr:
			expr = x.X
		case *ast.Ident:
			return x.Name
		default:
			return ""
		}
	}
}

// declared returns the symbols of our packages by folder.
func declared(files []source) map[string]symbols {
	all := map[string]symbols{}
	for _, s := range files {
		folder := filepath.ToSlash(filepath.Dir(s.path))
		if all[folder] == nil {
			all[folder] = symbols{}
		}
		all[folder].add(s.file)
	}
	return all
}

// importedSymbols returns the symbols of packages that are not ours.
func importedSymbols(t *testing.T, paths []string) map[string]symbols {
	t.Helper()
	if len(paths) == 0 {
		return nil
	}
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list", "-find", "-json=ImportPath,Dir,GoFiles"}, paths...)...)
	cmd.Dir = root
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v: %s", err, &stderr)
	}
	all := map[string]symbols{}
	for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
			ImportPath, Dir string
			GoFiles         []string
		}
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		found := symbols{}
		for _, name := range p.GoFiles {
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			found.add(file)
		}
		all[p.ImportPath] = found
	}
}
