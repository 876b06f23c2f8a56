// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package docs

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// pageReference is the path of a page, and perhaps an anchor, in a text that is not Markdown. The
// pages of fixtures have names of one letter.
var pageReference = regexp.MustCompile(`(?:^|[\s("'` + "`" + `/])(docs/[a-z][a-z0-9/-]+\.md)(#[a-z0-9_-]+)?`)

// TestPagesNamedElsewhereExist checks the pages, and their anchors, that code, charts, manifests
// and scripts name, for example in an error that sends a user there.
func TestPagesNamedElsewhereExist(t *testing.T) {
	extensions := []string{".go", ".yaml", ".yml", ".tpl", ".txt", ".json", ".sh", ""}
	found := 0
	for _, folder := range []string{"benchmark", "charts", "cmd", "hack", "manifests", "pkg", "test", ".ci", "Makefile"} {
		err := filepath.WalkDir(filepath.Join(root, folder), func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || !slices.Contains(extensions, filepath.Ext(path)) {
				return err
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for i, line := range strings.Split(string(text), "\n") {
				for _, m := range pageReference.FindAllStringSubmatch(line, -1) {
					found++
					if _, err := os.Stat(filepath.Join(root, m[1])); err != nil {
						t.Errorf("%s:%d: there is no page %s", path, i+1, m[1])
					} else if m[2] != "" && !anchors(readPage(t, m[1]))[m[2][1:]] {
						t.Errorf("%s:%d: %s has no heading with the anchor %s", path, i+1, m[1], m[2])
					}
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if found < 5 {
		t.Errorf("found the names of %d pages only", found)
	}
}
