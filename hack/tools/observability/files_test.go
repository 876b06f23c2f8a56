// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// TestFilesAreUpToDate compares the generated files with those in the project, and looks for files
// that are not generated any more.
func TestFilesAreUpToDate(t *testing.T) {
	t.Parallel()
	files, err := generate()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join(root, name))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not up to date (%v): run go run -C hack/tools/observability .", name, err)
		}
	}
	for _, dir := range []string{manifests, chart} {
		entries, err := os.ReadDir(filepath.Join(root, dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if files[dir+"/"+e.Name()] == nil && e.Name() != "kustomization.yaml" && e.Name() != "servicemonitor.yaml" {
				t.Errorf("%s/%s is not generated", dir, e.Name())
			}
		}
	}
}
