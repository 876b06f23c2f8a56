// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"
)

// manifestImageLine is the line of manifests/gateway that names the image.
const manifestImageLine = "        image: " + defaultImage

// install returns install.yaml: the files of manifests/gateway in the order of their kustomization,
// with the image of the release. The comments are kept.
func (r *release) install(digest string) ([]file, error) {
	base := filepath.Join(r.source, "manifests", "gateway")
	list, err := os.ReadFile(filepath.Join(base, "kustomization.yaml"))
	if err != nil {
		return nil, err
	}
	var kustomization struct {
		Resources []string `json:"resources"`
	}
	if err := yaml.Unmarshal(list, &kustomization); err != nil {
		return nil, fmt.Errorf("manifests/gateway/kustomization.yaml: %w", err)
	}
	var documents []string
	for _, name := range kustomization.Resources {
		data, err := os.ReadFile(filepath.Join(base, name))
		if err != nil {
			return nil, err
		}
		documents = append(documents, strings.TrimPrefix(string(data), "---\n"))
	}
	lines := strings.Split(strings.Join(documents, "---\n"), "\n")
	if err := onlyLine(lines, manifestImageLine, "        image: "+r.imageReference(digest)); err != nil {
		return nil, fmt.Errorf("manifests/gateway: %w", err)
	}
	header := "# Cluster Gateway " + r.version + ", for the hub. See docs/release.md.\n"
	return []file{{name: "install.yaml", data: []byte(header + strings.Join(lines, "\n")), mode: modeFile}}, nil
}

// imageReference returns how manifests name the image. In a registry it is pinned by its digest.
// The default name is in no registry: Nodes have the image only if somebody imported it, and then
// it has a tag only.
func (r *release) imageReference(digest string) string {
	tagged := r.image + ":" + r.version
	if r.image == defaultImage {
		return tagged
	}
	return tagged + "@" + digest
}
