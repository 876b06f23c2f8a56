// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestGivenBinaries checks which of the components that a user provides are used.
func TestGivenBinaries(t *testing.T) {
	for _, test := range []struct {
		name, prints string
		wantUsed     bool
		wantSaid     string
	}{
		{"same version", "Kubernetes v1.37.2", true, "using"},
		{"other patch level", "Kubernetes v1.37.9", true, "using"},
		{"other minor version", "Kubernetes v1.31.0", false, "its version is 1.31; wanted 1.37"},
		{"no version", "hello", false, "does not print its version"},
	} {
		for _, variable := range []string{assetsVariable, variablePrefix + "KUBE_APISERVER"} {
			t.Run(test.name+" in "+variable, func(t *testing.T) {
				path := filepath.Join(t.TempDir(), "kube-apiserver")
				script := fmt.Sprintf("#!/bin/sh\necho '%s'\n", test.prints)
				if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
					t.Fatal(err)
				}
				value := path
				if variable == assetsVariable {
					value = filepath.Dir(path)
				}
				t.Setenv(assetsVariable, "")
				t.Setenv(variable, value)
				used, said := given(t, "kube-apiserver")
				if (used == path) != test.wantUsed {
					t.Errorf("used %q", used)
				}
				if !strings.Contains(said, test.wantSaid) {
					t.Errorf("printed %q, want %q", said, test.wantSaid)
				}
			})
		}
	}
}

func given(t *testing.T, name string) (path, said string) {
	t.Helper()
	var out bytes.Buffer
	b, err := newBuilder(BinariesOptions{CacheDir: t.TempDir(), Out: &out})
	if err != nil {
		t.Fatal(err)
	}
	for _, candidate := range tools() {
		if candidate.name != name {
			continue
		}
		pinned, err := b.pin(candidate)
		if err != nil {
			t.Fatal(err)
		}
		path = b.given(t.Context(), pinned)
	}
	return path, out.String()
}

// TestPins checks that the version of every component is known, and that each has its own place in
// the cache.
func TestPins(t *testing.T) {
	b, err := newBuilder(BinariesOptions{CacheDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	targets := map[string]bool{}
	for _, candidate := range tools() {
		pinned, err := b.pin(candidate)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(pinned.version, "v") || targets[pinned.target] {
			t.Errorf("%s: version %q, target %s", pinned.name, pinned.version, pinned.target)
		}
		targets[pinned.target] = true
	}
}
