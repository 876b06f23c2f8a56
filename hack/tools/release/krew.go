// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/sha256"
	"encoding/hex"

	"sigs.k8s.io/yaml"
)

// pluginName is the name of agent-bootstrap as a plugin: kubectl cg.
const pluginName = "cg"

// The types of krew's manifest (krew.googlecontainertools.github.com/v1alpha2), as far as they are
// used.
type (
	plugin struct {
		APIVersion string         `json:"apiVersion"`
		Kind       string         `json:"kind"`
		Metadata   pluginMetadata `json:"metadata"`
		Spec       pluginSpec     `json:"spec"`
	}
	pluginMetadata struct {
		Name string `json:"name"`
	}
	pluginSpec struct {
		Version          string           `json:"version"`
		Homepage         string           `json:"homepage"`
		ShortDescription string           `json:"shortDescription"`
		Description      string           `json:"description"`
		Platforms        []pluginPlatform `json:"platforms"`
	}
	pluginPlatform struct {
		Selector pluginSelector `json:"selector"`
		URI      string         `json:"uri"`
		SHA256   string         `json:"sha256"`
		Bin      string         `json:"bin"`
		Files    []pluginFile   `json:"files"`
	}
	pluginSelector struct {
		MatchLabels map[string]string `json:"matchLabels"`
	}
	pluginFile struct {
		From string `json:"from"`
		To   string `json:"to"`
	}
)

// krew returns the manifest that installs agent-bootstrap as a plugin of kubectl.
func (r *release) krew(archives []archive) ([]file, error) {
	p := plugin{
		APIVersion: "krew.googlecontainertools.github.com/v1alpha2", Kind: "Plugin", Metadata: pluginMetadata{Name: pluginName},
		Spec: pluginSpec{
			Version: r.version, Homepage: project,
			ShortDescription: "Register and use clusters through a Cluster Gateway",
			Description: "Registers clusters with a Cluster Gateway, also clusters behind a firewall, shows their\n" +
				"state, finds out why one cannot be reached, writes kubeconfigs for them, and runs kubectl\n" +
				"or another program with one cluster or with many.\n",
		},
	}
	for _, a := range archives {
		if a.command != agentBootstrap {
			continue
		}
		sum := sha256.Sum256(a.data)
		program := a.platform.executable(agentBootstrap)
		p.Spec.Platforms = append(p.Spec.Platforms, pluginPlatform{
			Selector: pluginSelector{MatchLabels: map[string]string{"os": a.platform.os, "arch": a.platform.arch}},
			URI:      r.downloads + "/" + a.name, SHA256: hex.EncodeToString(sum[:]), Bin: program,
			Files: []pluginFile{{From: program, To: "."}, {From: "LICENSE", To: "."}},
		})
	}
	data, err := yaml.Marshal(p)
	return []file{{name: "krew/" + pluginName + ".yaml", data: data, mode: modeFile}}, err
}
