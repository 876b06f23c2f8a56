// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// imageDir is the folder of the OCI layout in a release.
const imageDir = "image"

// imageUser is the user of the image, as in manifests/gateway.
const imageUser = "65532:65532"

// writeImage writes an OCI layout with an image index to dir. binaries holds the paths of the
// commands, by platform; it returns the digest of the index.
func (r *release) writeImage(dir string, binaries map[platform]map[string]string) (v1.Hash, error) {
	base, err := r.baseLayer()
	if err != nil {
		return v1.Hash{}, err
	}
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, p := range r.platforms {
		if p.os != "linux" {
			continue
		}
		img, err := r.imageFor(p, base, binaries[p])
		if err != nil {
			return v1.Hash{}, fmt.Errorf("image for %s: %w", p, err)
		}
		// mutate returns a type that cannot be appended, so the manifests' annotations are set first.
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{
			Platform: &v1.Platform{OS: p.os, Architecture: p.arch},
		}})
	}
	index, ok := mutate.Annotations(index, r.labels()).(v1.ImageIndex)
	if !ok {
		return v1.Hash{}, errors.New("the image index cannot be annotated")
	}
	path, err := layout.Write(dir, mutate.IndexMediaType(empty.Index, types.OCIImageIndex))
	if err != nil {
		return v1.Hash{}, err
	}
	if err := path.AppendIndex(index, layout.WithAnnotations(map[string]string{
		"org.opencontainers.image.ref.name": r.version,
		"io.containerd.image.name":          r.image + ":" + r.version, // the name under which ctr imports it
	})); err != nil {
		return v1.Hash{}, err
	}
	return index.Digest()
}

func (r *release) imageFor(p platform, base v1.Layer, binaries map[string]string) (v1.Image, error) {
	files := []file{}
	for command, path := range binaries {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		files = append(files, file{name: "usr/local/bin/" + command, data: data, mode: modeExecutable})
	}
	commands, err := r.layer(files)
	if err != nil {
		return nil, err
	}
	created := v1.Time{Time: r.time}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err = mutate.Append(img,
		mutate.Addendum{Layer: base, History: v1.History{Created: created, CreatedBy: "users, groups and root CAs"}},
		mutate.Addendum{Layer: commands, History: v1.History{Created: created, CreatedBy: "gateway and agent-bootstrap"}})
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Created, config.Author = p.os, p.arch, created, "The Cluster Gateway Authors"
	config.Config = v1.Config{
		User:         imageUser,
		WorkingDir:   "/",
		Env:          []string{"PATH=/usr/local/bin", "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt"},
		Entrypoint:   []string{"/usr/local/bin/gateway"},
		ExposedPorts: map[string]struct{}{"8443/tcp": {}, "8132/tcp": {}},
		StopSignal:   "SIGTERM",
		Labels:       r.labels(),
	}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		return nil, err
	}
	annotated, ok := mutate.Annotations(img, r.labels()).(v1.Image)
	if !ok {
		return nil, errors.New("the image cannot be annotated")
	}
	return annotated, nil
}

// labels returns the predefined annotations of OCI.
func (r *release) labels() map[string]string {
	const prefix = "org.opencontainers.image."
	return map[string]string{
		prefix + "title":         "Cluster Gateway",
		prefix + "description":   "An aggregated API server through which one cluster reaches many",
		prefix + "vendor":        "The Cluster Gateway Authors",
		prefix + "licenses":      "Apache-2.0",
		prefix + "url":           project,
		prefix + "source":        project,
		prefix + "documentation": project + "/tree/" + r.version + "/docs",
		prefix + "version":       r.version,
		prefix + "revision":      r.commit,
		prefix + "created":       r.time.Format(time.RFC3339),
	}
}

// baseLayer returns the layer with what the commands need besides themselves. The folder /tmp is
// there for a volume.
func (r *release) baseLayer() (v1.Layer, error) {
	roots, err := rootCAs()
	if err != nil {
		return nil, err
	}
	user, _, _ := strings.Cut(imageUser, ":")
	return r.layer([]file{
		{name: "tmp/", mode: 0o1777},
		{name: "etc/passwd", mode: modeFile, data: []byte("root:x:0:0:root:/:/sbin/nologin\nnonroot:x:" + imageUser + ":nonroot:/:/sbin/nologin\n")},
		{name: "etc/group", mode: modeFile, data: []byte("root:x:0:\nnonroot:x:" + user + ":\n")},
		{name: "etc/ssl/certs/ca-certificates.crt", mode: modeFile, data: roots},
	})
}

// layer returns a compressed layer. Files get the folders above them.
func (r *release) layer(files []file) (v1.Layer, error) {
	folders := map[string]bool{}
	for _, f := range files {
		for dir := filepath.Dir(strings.TrimSuffix(f.name, "/")); dir != "."; dir = filepath.Dir(dir) {
			folders[dir+"/"] = true
		}
	}
	for dir := range folders {
		files = append(files, file{name: dir, mode: modeExecutable})
	}
	var content bytes.Buffer
	if err := writeTar(&content, files, r.time); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(content.Bytes())), nil
	}, tarball.WithMediaType(types.OCILayer), tarball.WithCompressedCaching)
}

// rootCAs returns Mozilla's root CAs, as the Go project keeps them, in PEM. It leaves out those
// that Mozilla trusts only with restrictions: a file cannot hold the restrictions.
func rootCAs() ([]byte, error) {
	var out bytes.Buffer
	for root := range bundle.Roots() {
		if root.Constraint != nil {
			continue
		}
		cert, err := x509.ParseCertificate(root.Certificate)
		if err != nil {
			return nil, fmt.Errorf("root CA: %w", err)
		}
		fmt.Fprintf(&out, "# %s\n", cert.Subject)
		if err := pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), nil
}
