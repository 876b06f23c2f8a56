// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package install

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/oam-dev/cluster-gateway/test/lab"
)

// layout is an OCI layout: the folder image of a release.
type layout string

// descriptor refers to a blob of the layout.
type descriptor struct {
	MediaType string
	Digest    string
	Platform  struct{ Os, Architecture string }
}

// blob reads a blob, and checks its digest.
func (l layout) blob(t *testing.T, d descriptor) []byte {
	t.Helper()
	algorithm, digest, _ := strings.Cut(d.Digest, ":")
	data, err := os.ReadFile(filepath.Join(string(l), "blobs", algorithm, digest))
	if err != nil {
		t.Fatal(err)
	}
	if sum := sha256.Sum256(data); algorithm != "sha256" || hex.EncodeToString(sum[:]) != digest {
		t.Fatalf("blob %s has the digest %x", d.Digest, sum)
	}
	return data
}

func parse(t *testing.T, data []byte, into any) {
	t.Helper()
	if err := json.Unmarshal(data, into); err != nil {
		t.Fatal(err)
	}
}

// unpack unpacks the image for this machine as a container runtime does, and returns how its
// program is run.
func (l layout) unpack(t *testing.T) lab.ProcessOptions {
	t.Helper()
	var index struct{ Manifests []descriptor }
	data, err := os.ReadFile(filepath.Join(string(l), "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	parse(t, data, &index)
	if len(index.Manifests) != 1 {
		t.Fatalf("the layout has %d images", len(index.Manifests))
	}
	parse(t, l.blob(t, index.Manifests[0]), &index)
	var manifest struct {
		Config descriptor
		Layers []descriptor
	}
	for _, m := range index.Manifests {
		if m.Platform.Os == "linux" && m.Platform.Architecture == runtime.GOARCH {
			parse(t, l.blob(t, m), &manifest)
		}
	}
	if len(manifest.Layers) == 0 {
		t.Fatalf("the release has no image for linux/%s", runtime.GOARCH)
	}
	var image struct {
		Config struct {
			User            string
			Env, Entrypoint []string
		}
	}
	parse(t, l.blob(t, manifest.Config), &image)
	user, group, _ := strings.Cut(image.Config.User, ":")
	id, err := strconv.ParseUint(user, 10, 32)
	if err != nil || group != user || len(image.Config.Entrypoint) != 1 {
		t.Fatalf("the image has the configuration %+v", image.Config)
	}
	root := t.TempDir()
	for _, layer := range manifest.Layers {
		if err := extract(strings.NewReader(string(l.blob(t, layer))), root); err != nil {
			t.Fatalf("layer %s: %v", layer.Digest, err)
		}
	}
	return lab.ProcessOptions{Path: image.Config.Entrypoint[0], Env: image.Config.Env, Container: &lab.Container{Root: root, User: uint32(id)}}
}

// extract extracts a compressed archive with folders and ordinary files.
func extract(archive io.Reader, dir string) error {
	uncompressed, err := gzip.NewReader(archive)
	if err != nil {
		return err
	}
	for files := tar.NewReader(uncompressed); ; {
		h, err := files.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		path := filepath.Join(dir, filepath.Clean("/"+h.Name))
		switch h.Typeflag {
		case tar.TypeDir:
			err = os.MkdirAll(path, 0o755)
		case tar.TypeReg:
			var data []byte
			if data, err = io.ReadAll(files); err == nil {
				err = errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, 0o644))
			}
		default:
			err = fmt.Errorf("%s has the type %q", h.Name, h.Typeflag)
		}
		if err == nil {
			err = os.Chmod(path, os.FileMode(h.Mode).Perm())
		}
		if err != nil {
			return err
		}
	}
}
