// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package docs

import (
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	repositoryPath = regexp.MustCompile(`^(?:\./)?((?:benchmark|cmd|docs|hack|manifests|pkg|test|\.ci|\.github)(?:/[\w{}*-][\w.{}*-]*)*)/?(?:\.\.\.)?$`)
	makeCommand    = regexp.MustCompile(`\bmake ([a-z][a-z0-9-]*)`)
	makeTarget     = regexp.MustCompile(`(?m)^([a-z][a-z0-9-]*):`)
	testName       = regexp.MustCompile(`\b(?:Test|Fuzz|Benchmark)[A-Z]\w*\*?`)
	ourIdentifier  = regexp.MustCompile(`^([a-z][a-z0-9]*)\.([A-Za-z]\w*(?:\.\w+)?)(?:\(\))?$`)
)

// historic pages quote runs and versions of the past.
func historic(p page) bool {
	return p.path == "CHANGELOG.md" || strings.HasPrefix(p.path, "docs/benchmark/")
}

// TestPathsInPagesExist checks the files and folders of this repository that pages name, also
// without their folder, in the table of docs/architecture.md.
func TestPathsInPagesExist(t *testing.T) {
	for _, p := range pages(t) {
		if historic(p) {
			continue
		}
		for _, l := range p.lines {
			for _, span := range l.spans() {
				for word := range strings.FieldsSeq(span) {
					m := repositoryPath.FindStringSubmatch(strings.TrimRight(word, ",:;)"))
					if m == nil {
						continue
					}
					if found, err := filepath.Glob(filepath.Join(root, m[1])); err != nil || len(found) == 0 {
						t.Errorf("%s:%d: there is no %s", p.path, l.number, m[1])
					}
				}
			}
		}
	}
	for _, row := range readPage(t, "docs/architecture.md").table(t, "Packages") {
		for _, file := range codeSpan.FindAllStringSubmatch(row[2], -1) {
			folder := codeSpan.FindStringSubmatch(row[0])[1]
			if _, err := os.Stat(filepath.Join(root, path.Join(folder, file[1]))); err != nil {
				t.Errorf("docs/architecture.md: there is no %s in %s", file[1], folder)
			}
		}
	}
}

// TestMakeTargetsInPagesExist checks each "make TARGET" against the Makefile.
func TestMakeTargetsInPagesExist(t *testing.T) {
	makefile, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	targets := map[string]bool{}
	for _, m := range makeTarget.FindAllStringSubmatch(string(makefile), -1) {
		targets[m[1]] = true
	}
	check := func(p page, l line, text string) {
		for _, m := range makeCommand.FindAllStringSubmatch(text, -1) {
			if !targets[m[1]] {
				t.Errorf("%s:%d: the Makefile has no target %s", p.path, l.number, m[1])
			}
		}
	}
	for _, p := range pages(t) {
		if historic(p) {
			continue
		}
		for _, l := range p.lines {
			if l.code {
				check(p, l, l.text)
			}
			for _, span := range l.spans() {
				check(p, l, span)
			}
		}
	}
}

// TestTestsInPagesExist checks the names of tests that pages give as evidence. A name with a star
// is a prefix.
func TestTestsInPagesExist(t *testing.T) {
	exist := map[string]bool{}
	for _, s := range goFiles(t) {
		for name := range declared([]source{s})[filepath.ToSlash(filepath.Dir(s.path))] {
			exist[name] = true
		}
	}
	for _, p := range pages(t) {
		if historic(p) {
			continue
		}
		for _, l := range p.lines {
			for _, name := range testName.FindAllString(l.text, -1) {
				prefix, isPrefix := strings.CutSuffix(name, "*")
				ok := exist[name]
				for e := range exist {
					ok = ok || isPrefix && strings.HasPrefix(e, prefix)
				}
				if !ok {
					t.Errorf("%s:%d: there is no test %s", p.path, l.number, name)
				}
			}
		}
	}
}

// TestIdentifiersInPagesExist checks names such as `proxy.Handler` in pages: a package of ours and
// what it declares.
func TestIdentifiersInPagesExist(t *testing.T) {
	packages := map[string][]symbols{}
	for folder, declares := range declared(goFiles(t)) {
		packages[path.Base(folder)] = append(packages[path.Base(folder)], declares)
	}
	fileExtensions := map[string]bool{"go": true, "md": true, "yaml": true, "yml": true, "sh": true, "json": true, "txt": true, "svg": true, "html": true, "kubeconfig": true, "crt": true, "key": true}
	values, err := os.ReadFile("../charts/cluster-gateway/README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pages(t) {
		if historic(p) || strings.HasPrefix(p.path, "charts/") { // values of a chart look alike
			continue
		}
		for _, l := range p.lines {
			for _, span := range l.spans() {
				m := ourIdentifier.FindStringSubmatch(span)
				if m == nil || packages[m[1]] == nil || fileExtensions[m[2]] || strings.Contains(string(values), "| `"+span) {
					continue
				}
				ok := false
				for _, s := range packages[m[1]] {
					ok = ok || s[m[2]]
				}
				if !ok {
					t.Errorf("%s:%d: package %s declares no %s", p.path, l.number, m[1], m[2])
				}
			}
		}
	}
}
