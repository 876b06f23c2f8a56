// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build integration

package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// TestKrewInstallsThePlugin lets krew's own programs validate the manifest of a release, install
// the plugin for every platform from the archives, and install it for this one from a file, as a
// user does without a network. Then kubectl runs it.
func TestKrewInstallsThePlugin(t *testing.T) {
	bin := t.TempDir()
	// Both programs call each other by these names: kubectl finds krew as its plugin.
	if err := os.Symlink(labKubectl(t), filepath.Join(bin, "kubectl")); err != nil {
		t.Fatal(err)
	}
	goBuildInto(t, filepath.Join("..", "krew"), filepath.Join(bin, "kubectl-krew"), "sigs.k8s.io/krew/cmd/krew")
	goBuildInto(t, filepath.Join("..", "krew"), filepath.Join(bin, "validate"), "sigs.k8s.io/krew/cmd/validate-krew-manifest")

	dist := filepath.Join(t.TempDir(), "dist")
	server := httptest.NewServer(http.FileServer(http.Dir(dist)))
	t.Cleanup(server.Close)
	r, here := testRelease(t, dist), platform{runtime.GOOS, runtime.GOARCH}
	r.downloads = server.URL
	var err error
	if r.platforms, err = parsePlatforms(defaultPlatforms); err != nil {
		t.Fatal(err)
	}
	tiny := r.build
	r.build = func(ctx context.Context, target target) error {
		if target.command == agentBootstrap && target.platform == here {
			goBuildInto(t, filepath.Join("..", "..", ".."), target.out, "./cmd/"+agentBootstrap)
			return nil
		}
		return tiny(ctx, target)
	}
	if err := r.make(t.Context()); err != nil {
		t.Fatal(err)
	}
	manifest := filepath.Join(dist, "krew", pluginName+".yaml")

	// Each has a folder of krew's own.
	user, other := &krewUser{bin, t.TempDir()}, &krewUser{bin, t.TempDir()}
	want := "all 5 spec.platforms installed fine"
	if out, err := user.run(t, "validate", "-manifest", manifest); err != nil || !strings.Contains(out, want) {
		t.Errorf("validate-krew-manifest: %v\n%s\nwant %q", err, out, want)
	}

	server.Close() // from here on, nothing can be downloaded
	archive := filepath.Join(dist, agentBootstrap+"_v0.1.0_"+here.os+"_"+here.arch+".tar.gz")
	if out, err := user.run(t, "kubectl", "krew", "install", "--manifest="+manifest, "--archive="+archive); err != nil {
		t.Fatalf("kubectl krew install: %v\n%s", err, out)
	}
	if out, err := user.run(t, "kubectl", pluginName, "help", "status"); err != nil || !strings.Contains(out, "kubectl cg status") {
		t.Errorf("kubectl cg help status: %v\n%s", err, out)
	}
	if out, err := other.run(t, "kubectl", pluginName, "help"); err == nil {
		t.Errorf("kubectl cg works without an installation:\n%s", out)
	}
	other.refused(t, manifest, archive)
}

// krewUser has the programs in a folder, and what krew installs.
type krewUser struct{ bin, root string }

func (u *krewUser) run(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(u.bin, name), args...)
	cmd.Env = []string{"PATH=" + filepath.Join(u.root, "bin") + ":" + u.bin, "HOME=" + u.root, "KREW_ROOT=" + u.root, "TMPDIR=" + t.TempDir()}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// refused checks that krew notices an archive that is not the one of the manifest, and a manifest
// that it cannot use. Otherwise, its approval would mean nothing.
func (u *krewUser) refused(t *testing.T, manifest, archive string) {
	t.Helper()
	data, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)-1]++
	changed := filepath.Join(t.TempDir(), filepath.Base(archive))
	write(t, changed, data)
	if out, err := u.run(t, "kubectl", "krew", "install", "--manifest="+manifest, "--archive="+changed); err == nil || !strings.Contains(out, "checksum does not match") {
		t.Errorf("an archive with a changed byte: %v\n%s", err, out)
	}
	text, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	var p plugin
	if err := yaml.UnmarshalStrict(text, &p); err != nil {
		t.Fatal(err)
	}
	p.Spec.Platforms = append(p.Spec.Platforms, p.Spec.Platforms[0])
	twice, err := yaml.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	bad := filepath.Join(t.TempDir(), filepath.Base(manifest))
	write(t, bad, twice)
	if out, err := u.run(t, "validate", "-manifest", bad, "-skip-install"); err == nil || !strings.Contains(out, "overlapping platform selectors") {
		t.Errorf("a platform that is there twice: %v\n%s", err, out)
	}
}

// labKubectl returns the kubectl of the lab, which is built if it is missing.
func labKubectl(t *testing.T) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "run", "./test/lab/cmd/lab-tools", "-api-server-only")
	cmd.Dir = filepath.Join("..", "..", "..")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("lab-tools: %v", err)
	}
	for line := range strings.Lines(string(out)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "kubectl="); ok {
			return path
		}
	}
	t.Fatalf("lab-tools printed no kubectl:\n%s", out)
	return ""
}

// goBuildInto builds a package of the module in dir.
func goBuildInto(t *testing.T, dir, out, pkg string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", out, pkg)
	cmd.Dir = dir
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build %s: %v\n%s", pkg, err, text)
	}
}
