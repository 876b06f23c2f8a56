// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
)

// root is the folder of the project, from this one.
const root = "../../.."

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "observability:", err)
		os.Exit(1)
	}
}

// run writes the generated files.
func run() error {
	files, err := generate()
	if err != nil {
		return err
	}
	for name, data := range files {
		path := filepath.Join(root, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// The folders of the generated files. The chart can read only files in its own folder.
const (
	manifests = "manifests/gateway/monitoring"
	chart     = "charts/cluster-gateway/files"
)

// generate returns the generated files by their paths in the project.
func generate() (map[string][]byte, error) {
	files := map[string][]byte{}
	rules, err := rulesFile()
	if err != nil {
		return nil, err
	}
	files[manifests+"/rules.yaml"], files[chart+"/rules.yaml"] = rules, rules
	if files[manifests+"/prometheusrule.yaml"], err = prometheusRule(); err != nil {
		return nil, err
	}
	for _, d := range dashboards() {
		data, err := d.encode()
		if err != nil {
			return nil, err
		}
		files[manifests+"/"+d.file], files[chart+"/"+d.file] = data, data
	}
	return files, nil
}
