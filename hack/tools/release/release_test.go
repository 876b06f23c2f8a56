// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"log"
	"maps"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"sigs.k8s.io/yaml"
)

// source returns a copy of the files of this repository that a release needs. Their modes and
// times are those of this moment.
func source(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	root := filepath.Join("..", "..", "..")
	for _, name := range []string{"LICENSE", "CHANGELOG.md"} {
		data, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, name), data)
	}
	for _, folder := range []string{"manifests/gateway", "charts"} {
		if err := os.CopyFS(filepath.Join(dir, folder), os.DirFS(filepath.Join(root, folder))); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// testRelease makes releases of tiny files instead of commands.
func testRelease(t *testing.T, dist string) *release {
	t.Helper()
	return &release{
		source: source(t), dist: dist, version: "v0.1.0", commit: strings.Repeat("c", 40), treeState: "clean",
		time: time.Unix(1_700_000_000, 0).UTC(), image: "registry.example.com/cluster-gateway", downloads: "https://example.com/v0.1.0",
		platforms: []platform{{"darwin", "arm64"}, {"linux", "amd64"}, {"linux", "arm64"}, {"windows", "amd64"}}, log: io.Discard,
		build: func(_ context.Context, target target) error {
			write(t, target.out, []byte(target.command+" for "+target.platform.String()))
			return nil
		},
		readInfo: func(string) (*debug.BuildInfo, error) {
			return &debug.BuildInfo{GoVersion: "go1.99", Main: debug.Module{Path: "example.com/gateway"}}, nil
		},
		run: func(_ context.Context, _ string, args ...string) ([]byte, error) {
			return []byte("# " + strings.Join(args, " ") + "\n"), nil
		},
	}
}

func made(t *testing.T) string {
	t.Helper()
	dist := filepath.Join(t.TempDir(), "dist")
	if err := testRelease(t, dist).make(t.Context()); err != nil {
		t.Fatal(err)
	}
	return dist
}

// TestTwoBuildsAreEqual makes a release twice, from copies of the source with other modes and times
// of files, into other folders.
func TestTwoBuildsAreEqual(t *testing.T) {
	a, b := testRelease(t, filepath.Join(t.TempDir(), "a")), testRelease(t, filepath.Join(t.TempDir(), "deep", "er", "b"))
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a.signer, b.signer = key, key
	old := filepath.Join(b.source, "charts", "cluster-gateway", "values.yaml")
	if err := errors.Join(os.Chmod(old, 0o600), os.Chtimes(old, time.Unix(1, 0), time.Unix(1, 0))); err != nil {
		t.Fatal(err)
	}
	for _, r := range []*release{a, b} {
		if err := r.make(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := compare(a.dist, b.dist); err != nil {
		t.Error(err)
	}
	write(t, filepath.Join(b.dist, "install.yaml"), []byte("changed"))
	if err := compare(a.dist, b.dist); err == nil || !strings.Contains(err.Error(), "install.yaml") {
		t.Errorf("compare does not see a change: %v", err)
	}
}

func TestRest(t *testing.T) {
	dist := made(t)
	t.Run("files", func(t *testing.T) { testFiles(t, dist) })
	t.Run("image", func(t *testing.T) { testImage(t, dist) })
	t.Run("push and pull", func(t *testing.T) { testPush(t, dist) })
	t.Run("krew", func(t *testing.T) { testKrew(t, dist) })
	t.Run("install", func(t *testing.T) { testInstall(t, dist) })
	t.Run("verify", func(t *testing.T) { testVerify(t, dist) }) // changes files
}

func testFiles(t *testing.T, dist string) {
	sums, err := sumsOf(dist)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, name := range slices.Sorted(maps.Keys(sums)) {
		if !strings.HasPrefix(name, "image/blobs/") {
			got = append(got, name)
		}
	}
	want := []string{
		"agent-bootstrap_v0.1.0_darwin_arm64.tar.gz", "agent-bootstrap_v0.1.0_linux_amd64.tar.gz",
		"agent-bootstrap_v0.1.0_linux_arm64.tar.gz", "agent-bootstrap_v0.1.0_windows_amd64.zip",
		"cluster-gateway-0.1.0.tgz", "cluster-gateway-agent-0.1.0.tgz",
		"completions/agent-bootstrap.bash", "completions/agent-bootstrap.fish", "completions/agent-bootstrap.ps1", "completions/agent-bootstrap.zsh",
		"gateway_v0.1.0_darwin_arm64.tar.gz", "gateway_v0.1.0_linux_amd64.tar.gz", "gateway_v0.1.0_linux_arm64.tar.gz",
		"image/index.json", "image/oci-layout", "install.yaml", "krew/cg.yaml", "release-notes.md",
		"sbom/agent-bootstrap_v0.1.0_darwin_arm64.cdx.json", "sbom/agent-bootstrap_v0.1.0_linux_amd64.cdx.json",
		"sbom/agent-bootstrap_v0.1.0_linux_arm64.cdx.json", "sbom/agent-bootstrap_v0.1.0_windows_amd64.cdx.json",
		"sbom/gateway_v0.1.0_darwin_arm64.cdx.json", "sbom/gateway_v0.1.0_linux_amd64.cdx.json", "sbom/gateway_v0.1.0_linux_arm64.cdx.json",
	}
	if !slices.Equal(got, want) {
		t.Errorf("the release has the files\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	data, err := os.ReadFile(filepath.Join(dist, "cluster-gateway-0.1.0.tgz"))
	if err != nil {
		t.Fatal(err)
	}
	chart := untar(t, data)
	for name, lines := range map[string][]string{
		"cluster-gateway/Chart.yaml":  {"version: 0.1.0", "appVersion: v0.1.0"},
		"cluster-gateway/values.yaml": {"  repository: registry.example.com/cluster-gateway"},
	} {
		for _, line := range lines {
			if !slices.Contains(strings.Split(string(chart[name].data), "\n"), line) {
				t.Errorf("%s has no line %q:\n%s", name, line, chart[name].data)
			}
		}
	}
	if chart["cluster-gateway/templates/deployment.yaml"].data == nil {
		t.Error("the chart has no templates")
	}
}

// untar reads a compressed archive, and checks that owners and times are fixed.
func untar(t *testing.T, data []byte) map[string]file {
	t.Helper()
	r, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	if r.Name != "" || !r.ModTime.IsZero() {
		t.Errorf("the gzip header has the name %q and the time %s", r.Name, r.ModTime)
	}
	return readTar(t, r)
}

func readTar(t *testing.T, r io.Reader) map[string]file {
	t.Helper()
	files := map[string]file{}
	for archive := tar.NewReader(r); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || h.Uname != "" || h.Gname != "" || h.ModTime.Unix() != 1_700_000_000 {
			t.Errorf("%s has the owner %d:%d (%s:%s) and the time %s", h.Name, h.Uid, h.Gid, h.Uname, h.Gname, h.ModTime)
		}
		content, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = file{name: h.Name, data: content, mode: h.Mode}
	}
}

func testImage(t *testing.T, dist string) {
	index, err := readImage(dist)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(index); err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	var platforms []string
	for _, m := range manifest.Manifests {
		platforms = append(platforms, m.Platform.String())
		img, err := index.Image(m.Digest)
		if err != nil {
			t.Fatal(err)
		}
		checkImage(t, img, m.Platform)
	}
	if want := []string{"linux/amd64", "linux/arm64"}; !slices.Equal(platforms, want) {
		t.Errorf("the image is for %v, want %v", platforms, want)
	}
}

func checkImage(t *testing.T, img v1.Image, p *v1.Platform) {
	t.Helper()
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if config.OS != p.OS || config.Architecture != p.Architecture || config.Config.User != "65532:65532" ||
		!slices.Equal(config.Config.Entrypoint, []string{"/usr/local/bin/gateway"}) || config.Created.Unix() != 1_700_000_000 {
		t.Errorf("the image for %s has the configuration %+v", p, config)
	}
	if got := config.Config.Labels["org.opencontainers.image.version"]; got != "v0.1.0" {
		t.Errorf("the label for the version is %q", got)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]file{}
	for _, l := range layers {
		content, err := l.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		maps.Copy(files, readTar(t, content))
		content.Close()
	}
	for name, mode := range map[string]int64{
		"etc/passwd": 0o644, "etc/group": 0o644, "etc/ssl/certs/ca-certificates.crt": 0o644, "tmp/": 0o1777, "usr/local/bin/": 0o755,
		"usr/local/bin/gateway": 0o755, "usr/local/bin/agent-bootstrap": 0o755,
	} {
		if got, ok := files[name]; !ok || got.mode != mode {
			t.Errorf("the image for %s has %s: %t, mode %o; want mode %o", p, name, ok, got.mode, mode)
		}
	}
	if n := bytes.Count(files["etc/ssl/certs/ca-certificates.crt"].data, []byte("BEGIN CERTIFICATE")); n < 50 {
		t.Errorf("the image has %d root CAs", n)
	}
}

func testPush(t *testing.T, dist string) {
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	to := strings.TrimPrefix(server.URL, "http://") + "/team/cluster-gateway:v0.1.0"
	pushed, err := push(t.Context(), dist, to)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.NewDigest(pushed)
	if err != nil {
		t.Fatal(err)
	}
	pulled, err := remote.Index(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(pulled); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"", "cluster-gateway", "registry.example.com/x@sha256:" + strings.Repeat("0", 64)} {
		if _, err := push(t.Context(), dist, bad); err == nil || !strings.Contains(err.Error(), "invalid reference") {
			t.Errorf("push to %q: %v", bad, err)
		}
	}
}

func testKrew(t *testing.T, dist string) {
	data, err := os.ReadFile(filepath.Join(dist, "krew", "cg.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var p plugin
	if err := yaml.UnmarshalStrict(data, &p); err != nil {
		t.Fatal(err)
	}
	if len(p.Spec.Platforms) != 4 {
		t.Errorf("the plugin is for %d platforms, want 4", len(p.Spec.Platforms))
	}
	for _, at := range p.Spec.Platforms {
		name := strings.TrimPrefix(at.URI, "https://example.com/v0.1.0/")
		content, err := os.ReadFile(filepath.Join(dist, name))
		if err != nil {
			t.Error(err)
			continue
		}
		if sum := sha256.Sum256(content); hex.EncodeToString(sum[:]) != at.SHA256 {
			t.Errorf("%s: the plugin's manifest has another checksum", name)
		}
		if strings.HasSuffix(name, ".tar.gz") && untar(t, content)[at.Bin].mode != 0o755 {
			t.Errorf("%s has no program %s", name, at.Bin)
		}
	}
}

func testInstall(t *testing.T, dist string) {
	data, err := os.ReadFile(filepath.Join(dist, "install.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for document := range strings.SplitSeq(string(data), "\n---\n") {
		var o struct {
			Kind string `json:"kind"`
		}
		if err := yaml.Unmarshal([]byte(document), &o); err != nil {
			t.Fatal(err)
		}
		kinds = append(kinds, o.Kind)
	}
	if kinds[0] != "Namespace" || kinds[len(kinds)-1] != "APIService" {
		t.Errorf("the objects are %v; the Namespace must be the first one and the APIService the last one", kinds)
	}
	index, err := readImage(dist)
	if err != nil {
		t.Fatal(err)
	}
	digest, err := index.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if want := "image: registry.example.com/cluster-gateway:v0.1.0@" + digest.String(); !strings.Contains(string(data), want) {
		t.Errorf("install.yaml does not have %s", want)
	}
}

func testVerify(t *testing.T, dist string) {
	if err := verify(dist, ""); err != nil {
		t.Fatal(err)
	}
	install := filepath.Join(dist, "install.yaml")
	data, err := os.ReadFile(install)
	if err != nil {
		t.Fatal(err)
	}
	changed := bytes.Clone(data)
	changed[0]++
	write(t, install, changed)
	if err := verify(dist, ""); err == nil || !strings.Contains(err.Error(), "install.yaml: SHA-256") {
		t.Errorf("a file with a changed byte: %v", err)
	}
	write(t, install, data)
	added := filepath.Join(dist, "added")
	write(t, added, nil)
	if err := verify(dist, ""); err == nil || !strings.Contains(err.Error(), "added: missing in the checksums") {
		t.Errorf("a file that was added: %v", err)
	}
	if err := os.Remove(added); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(install); err != nil {
		t.Fatal(err)
	}
	if err := verify(dist, ""); err == nil || !strings.Contains(err.Error(), "install.yaml: missing in "+dist) {
		t.Errorf("a file that was removed: %v", err)
	}
}

// TestDistIsNotRemoved checks that a folder that holds something else is left alone, and that a
// build that fails leaves the release of before.
func TestDistIsNotRemoved(t *testing.T) {
	dist := t.TempDir()
	mine := filepath.Join(dist, "mine")
	write(t, mine, []byte("x"))
	r := testRelease(t, dist)
	if err := r.make(t.Context()); err == nil || !strings.Contains(err.Error(), "holds no release") {
		t.Errorf("make: %v", err)
	}
	write(t, filepath.Join(dist, sumsFile), nil)
	broken := errors.New("broken compiler")
	r.build = func(context.Context, target) error { return broken }
	if err := r.make(t.Context()); !errors.Is(err, broken) {
		t.Errorf("make: %v, want %v", err, broken)
	}
	if _, err := os.Stat(mine); err != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(dist), ".*")); len(left) > 0 {
		t.Errorf("a build that failed left %v", left)
	}
}

func TestOptions(t *testing.T) {
	for version, good := range map[string]bool{
		"v0.1.0": true, "v1.2.3-rc.1": true, "": false, "0.1.0": false, "v1": false, "v1.2": false, "v1.2.3+dirty": false, "v01.2.3": false,
		"v1.2.3-": false, "v1.2.3 -X main.x=y": false, "latest": false,
	} {
		t.Setenv("COMMIT", "abcdef1")
		t.Setenv("SOURCE_DATE_EPOCH", "1700000000")
		r, err := options{version: version, image: defaultImage, platforms: defaultPlatforms, dist: "dist"}.complete(t.Context(), nil)
		if (err == nil) != good {
			t.Errorf("version %q: %v", version, err)
		}
		if good && (r.commit != "abcdef1" || r.time.Unix() != 1_700_000_000) {
			t.Errorf("the release is of %s, %s", r.commit, r.time)
		}
	}
	if _, err := parsePlatforms("darwin/arm64"); err == nil || !strings.Contains(err.Error(), "must be linux") {
		t.Errorf("a release without an image: %v", err)
	}
	t.Setenv("COMMIT", "abcdef1 -X main.x=y")
	if _, err := (options{version: "v1.0.0", image: defaultImage, platforms: "linux/arm64"}).complete(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "invalid COMMIT") {
		t.Errorf("an odd COMMIT: %v", err)
	}
	_, err := options{version: "1", image: "a b", platforms: "plan9/amd64", downloadURL: "ftp://x", signingKey: "none", dist: "d"}.complete(t.Context(), []string{"more"})
	for _, want := range []string{`argument "more"`, `version "1"`, `image "a b"`, `platform "plan9/amd64"`, `download URL "ftp://x"`, "signing key"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not name %s: %v", want, err)
		}
	}
}
