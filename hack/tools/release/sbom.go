// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"
)

// The types of CycloneDX 1.6, as far as they are used.
type (
	bom struct {
		Schema       string       `json:"$schema"`
		Format       string       `json:"bomFormat"`
		SpecVersion  string       `json:"specVersion"`
		SerialNumber string       `json:"serialNumber"`
		Version      int          `json:"version"`
		Metadata     bomMetadata  `json:"metadata"`
		Components   []component  `json:"components"`
		Dependencies []dependency `json:"dependencies"`
	}
	bomMetadata struct {
		Timestamp string    `json:"timestamp"`
		Component component `json:"component"`
	}
	component struct {
		Type       string     `json:"type"`
		Ref        string     `json:"bom-ref"`
		Name       string     `json:"name"`
		Version    string     `json:"version,omitempty"`
		PURL       string     `json:"purl,omitempty"`
		Hashes     []hash     `json:"hashes,omitempty"`
		Properties []property `json:"properties,omitempty"`
	}
	hash struct {
		Algorithm string `json:"alg"`
		Content   string `json:"content"`
	}
	property struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	}
	dependency struct {
		Ref       string   `json:"ref"`
		DependsOn []string `json:"dependsOn,omitempty"`
	}
)

// sboms returns a software bill of materials for each binary.
func (r *release) sboms(binaries map[platform]map[string]string) ([]file, error) {
	var files []file
	for p, commands := range binaries {
		for command, path := range commands {
			data, err := r.sbom(command, path)
			if err != nil {
				return nil, fmt.Errorf("SBOM of %s for %s: %w", command, p, err)
			}
			files = append(files, file{name: fmt.Sprintf("sbom/%s_%s_%s.cdx.json", command, r.version, p.suffix()), data: data, mode: modeFile})
		}
	}
	return files, nil
}

// sbom lists what the binary itself says it was built from, as go version -m prints it. That cannot
// differ from what is in it.
func (r *release) sbom(command, path string) ([]byte, error) {
	info, err := r.readInfo(path)
	if err != nil {
		return nil, err
	}
	r.goVersion = info.GoVersion
	digest, err := fileDigest(path)
	if err != nil {
		return nil, err
	}
	main := component{
		Type: "application", Ref: command, Name: command, Version: r.version,
		PURL:   modulePURL(info.Main.Path, r.version) + "#cmd/" + command,
		Hashes: []hash{{"SHA-256", digest}},
		Properties: append([]property{{"go:main", info.Path}, {"go:module", info.Main.Path}, {"vcs:revision", r.commit}},
			settings(info)...),
	}
	// The standard library is not a module, but has vulnerabilities, too.
	std := component{Type: "library", Ref: modulePURL("std", info.GoVersion), Name: "std", Version: info.GoVersion,
		PURL: modulePURL("std", strings.TrimPrefix(info.GoVersion, "go"))}
	b := bom{
		Schema: "http://cyclonedx.org/schema/bom-1.6.schema.json", Format: "CycloneDX", SpecVersion: "1.6", Version: 1,
		SerialNumber: "urn:uuid:" + uuid(digest),
		Metadata:     bomMetadata{Timestamp: r.time.Format(time.RFC3339), Component: main},
		Components:   []component{std},
		Dependencies: []dependency{{Ref: main.Ref, DependsOn: []string{std.Ref}}},
	}
	for _, m := range info.Deps {
		c := moduleComponent(m)
		b.Components = append(b.Components, c)
		b.Dependencies[0].DependsOn = append(b.Dependencies[0].DependsOn, c.Ref)
	}
	data, err := json.MarshalIndent(b, "", "  ")
	return append(data, '\n'), err
}

// settings returns the settings of the build (GOOS, CGO_ENABLED and so on).
func settings(info *debug.BuildInfo) []property {
	var list []property
	for _, s := range info.Settings {
		list = append(list, property{"go:build:" + s.Key, s.Value})
	}
	return list
}

// moduleComponent describes a module. Of a module that is replaced, it describes the replacement:
// that is what is in the binary.
func moduleComponent(m *debug.Module) component {
	var properties []property
	if m.Replace != nil {
		properties = append(properties, property{"go:replaces", m.Path + "@" + m.Version})
		m = m.Replace
	}
	if m.Sum != "" { // the checksum of the go command, which is over a list of files
		properties = append(properties, property{"go:sum", m.Sum})
	}
	purl := modulePURL(m.Path, m.Version)
	return component{Type: "library", Ref: purl, Name: m.Path, Version: m.Version, PURL: purl, Properties: properties}
}

func modulePURL(path, version string) string {
	return "pkg:golang/" + path + "@" + strings.ReplaceAll(version, "+", "%2B")
}

func fileDigest(path string) (string, error) {
	f, err := os.Open(filepath.Clean(path))
	if err != nil {
		return "", err
	}
	defer f.Close() //nolint:errcheck // it was only read
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// uuid makes a UUID of version 8 (RFC 9562) from a hexadecimal digest, so that it is the same in
// each build.
func uuid(digest string) string {
	return fmt.Sprintf("%s-%s-8%s-8%s-%s", digest[:8], digest[8:12], digest[13:16], digest[17:20], digest[20:32])
}
