// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package boundaries

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

type listed struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

func list(t *testing.T) map[string]listed {
	t.Helper()
	touch(t)
	cmd := exec.CommandContext(t.Context(), "go", "list", "-e", "-deps=false", "-json=ImportPath,Imports,Deps", Module+"pkg/...", Module+"cmd/...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v: %s", err, &stderr)
	}
	found := map[string]listed{}
	for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		found[strings.TrimPrefix(p.ImportPath, Module)] = p
	}
	return found
}

// touch reads each source file. The go command caches the result of a test by the files that the
// test itself reads, not by those that "go list" reads.
func touch(t *testing.T) {
	t.Helper()
	for _, dir := range []string{"../../../pkg", "../../../cmd"} {
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if err != nil || filepath.Ext(path) != ".go" {
				return err
			}
			_, err = os.Stat(path)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestImports(t *testing.T) {
	packages := list(t)
	mayImport := MayImport()
	for name := range mayImport {
		if _, found := packages[name]; !found {
			t.Errorf("MayImport has a rule for %s, and there is no such package", name)
		}
	}
	for name, p := range packages {
		allowed, ok := mayImport[name]
		if !ok {
			t.Errorf("MayImport has no rule for %s: add the packages of this module that it may import", name)
			continue
		}
		for _, path := range p.Imports {
			if ours, is := strings.CutPrefix(path, Module); is && !slices.Contains(allowed, ours) {
				t.Errorf("%s imports %s, which MayImport does not allow", name, ours)
			}
		}
	}
	for _, ban := range Bans() {
		for _, name := range ban.Packages {
			for _, dependency := range packages[name].Deps {
				if hasPrefix(dependency, ban.Imports) {
					t.Errorf("%s imports %s, directly or through another package: %s", name, dependency, ban.Reason)
				}
			}
		}
	}
}

// TestArrowsPointOneWay checks the rules themselves: no package may reach itself.
func TestArrowsPointOneWay(t *testing.T) {
	t.Parallel()
	mayImport := MayImport()
	const visiting, done = 1, 2
	state := map[string]int{}
	var visit func(name string, path []string)
	visit = func(name string, path []string) {
		path = append(path, name)
		switch state[name] {
		case visiting:
			t.Errorf("MayImport allows a cycle: %s", strings.Join(path, " → "))
			return
		case done:
			return
		}
		state[name] = visiting
		for _, next := range mayImport[name] {
			visit(next, path)
		}
		state[name] = done
	}
	for _, name := range slices.Sorted(maps.Keys(mayImport)) {
		visit(name, nil)
	}
}

// TestPublicPackages checks that other modules get few dependencies with the packages that they may
// import.
func TestPublicPackages(t *testing.T) {
	packages := list(t)
	for name, public := range PublicPackages() {
		p, found := packages[name]
		if !found {
			t.Errorf("there is no package %s", name)
			continue
		}
		for _, path := range p.Imports {
			if !standard(path) && !hasPrefix(path, public.Imports) {
				t.Errorf("%s imports %s: a public package may import only %q", name, path, public.Imports)
			}
		}
		others := slices.DeleteFunc(slices.Clone(p.Deps), standard)
		if len(others) > public.Most {
			t.Errorf("%s has %d dependencies outside the standard library, and may have %d:\n%s", name, len(others), public.Most, strings.Join(others, "\n"))
		}
		t.Logf("%s has %d dependencies outside the standard library", name, len(others))
	}
}

// standard reports whether a package is part of the standard library: its path begins with a name
// without a dot.
func standard(path string) bool {
	first, _, _ := strings.Cut(path, "/")
	return !strings.Contains(first, ".")
}

func hasPrefix(path string, prefixes []string) bool {
	return slices.ContainsFunc(prefixes, func(prefix string) bool { return path == prefix || strings.HasPrefix(path, prefix+"/") })
}
