// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestToolchain: a release has the standard library that go.mod asks for.
func TestToolchain(t *testing.T) {
	t.Parallel()
	if name, err := toolchainOf(filepath.Join("..", "..", "..")); err != nil || !strings.HasPrefix(name, "go1.") {
		t.Errorf("got %q, %v", name, err)
	}
	dir := t.TempDir()
	for content, want := range map[string]string{
		"module m\n\ngo 1.26.0\n\ntoolchain go1.26.10\n": "go1.26.10",
		"module m\n\ngo 1.26.0\n":                        "has no toolchain line",
		"no module":                                      "unknown directive",
	} {
		write(t, filepath.Join(dir, "go.mod"), []byte(content))
		name, err := toolchainOf(dir)
		if got := fmt.Sprint(name, err); !strings.Contains(got, want) {
			t.Errorf("%q: got %s, want %s", content, got, want)
		}
	}
}

// TestSBOMIsWhatTheBinarySays compares the SBOM of this test program with what go version -m
// prints.
func TestSBOMIsWhatTheBinarySays(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "go", "version", "-m", self).Output()
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for line := range strings.Lines(string(out)) {
		switch fields := strings.Fields(line); fields[0] {
		case "dep":
			want = append(want, fields[1]+"@"+fields[2])
		case "=>":
			want[len(want)-1] = fields[1] + "@" + fields[2]
		}
	}
	if len(want) < 5 {
		t.Fatalf("go version -m names %v", want)
	}
	r := &release{readInfo: buildinfo.ReadFile, version: "v0.1.0", time: time.Unix(1, 0).UTC()}
	data, err := r.sbom("gateway", self)
	if err != nil {
		t.Fatal(err)
	}
	var b bom
	if err := json.Unmarshal(data, &b); err != nil {
		t.Fatal(err)
	}
	if std := b.Components[0]; std.Name != "std" || std.Version != r.goVersion {
		t.Errorf("the first component is %+v, want the standard library", std)
	}
	var got []string
	for _, c := range b.Components[1:] {
		got = append(got, c.Name+"@"+c.Version)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("the SBOM lists %v, want %v", got, want)
	}
}

// TestSignatures signs with keys of openssl, and verifies with openssl and with verify. A signature
// must fail when a byte changes.
func TestSignatures(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("openssl is not installed")
	}
	for kind, generate := range map[string][]string{
		"ecdsa":   {"ecparam", "-name", "prime256v1", "-genkey", "-out"}, // writes EC PARAMETERS, too
		"ed25519": {"genpkey", "-algorithm", "ed25519", "-out"},
		"rsa":     {"genrsa", "-out"},
	} {
		t.Run(kind, func(t *testing.T) {
			dir := t.TempDir()
			run := func(args ...string) error {
				cmd := exec.CommandContext(t.Context(), openssl, args...)
				cmd.Dir = dir
				out, err := cmd.CombinedOutput()
				t.Logf("openssl %v: %v\n%s", args, err, out)
				return err
			}
			if err := errors.Join(run(append(generate, "key.pem")...), run("pkey", "-in", "key.pem", "-pubout", "-out", "public.pem")); err != nil {
				t.Fatal(err)
			}
			key, err := readSigner(filepath.Join(dir, "key.pem"))
			if err != nil {
				t.Fatal(err)
			}
			text := []byte("checksums\n")
			signature, err := sign(key, text)
			if err != nil {
				t.Fatal(err)
			}
			if again, err := sign(key, text); err != nil || !bytes.Equal(signature, again) {
				t.Errorf("the second signature differs: %v", err)
			}
			check := []string{"dgst", "-sha256", "-verify", "public.pem", "-signature", "sig", "text"}
			if kind == "ed25519" {
				check = []string{"pkeyutl", "-verify", "-pubin", "-inkey", "public.pem", "-rawin", "-in", "text", "-sigfile", "sig"}
			}
			public := filepath.Join(dir, "public.pem")
			for _, changed := range []bool{false, true} {
				if changed {
					text[0]++
				}
				write(t, filepath.Join(dir, "text"), text)
				write(t, filepath.Join(dir, "sig"), signature)
				if err := run(check...); (err != nil) != changed {
					t.Errorf("changed: %t, openssl says %v", changed, err)
				}
				if err := verifySignature(public, text, signature); errors.Is(err, errSignature) != changed || !changed && err != nil {
					t.Errorf("changed: %t, verifySignature says %v", changed, err)
				}
			}
		})
	}
}

func TestChanges(t *testing.T) {
	const changelog = "# Changelog\n\n## [Unreleased]\n\nnew\n\n## [0.2.0] - 2026-01-02\n\ntwo\n\n### Added\n\n- [a](docs/a.md), [b](https://b)\n\n" +
		"## [v0.1.0]\n\none\n\n[0.2.0]: https://example.com\n"
	for version, want := range map[string]string{"Unreleased": "new", "v0.2.0": "two\n\n### Added\n\n- [a](docs/a.md), [b](https://b)", "v0.1.0": "one"} {
		if got, ok := changes(changelog, version); !ok || got != want {
			t.Errorf("%s: %q, %t; want %q", version, got, ok, want)
		}
	}
	for _, version := range []string{"v0.2", "v0.2.0-rc.1", "v0X2.0", "v10.2.0"} {
		if got, ok := changes(changelog, version); ok {
			t.Errorf("%s has the changes %q", version, got)
		}
	}
	got := absoluteLinks("[a](docs/a.md), [b](https://b), [c](#c)", "v1.0.0")
	if want := "[a](" + project + "/blob/v1.0.0/docs/a.md), [b](https://b), [c](#c)"; got != want {
		t.Errorf("the links are %s, want %s", got, want)
	}
}
