// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package manifests contains the manifests for the hub and for managed clusters as kustomize bases.
// Programs use the same files, so that kubectl apply -k and agent-bootstrap always apply the same
// objects.
package manifests

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// The bases and components with objects, by folder.
const (
	Gateway                = "gateway"
	GatewayClusterAPI      = "gateway/clusterapi"
	GatewayClusterProfiles = "gateway/clusterprofiles"
	KonnectivityAgent      = "konnectivity/agent"
	KonnectivityInvitation = "konnectivity/invitation"
	KonnectivityServer     = "konnectivity/server"
)

//go:embed gateway/*.yaml gateway/audit/*.yaml gateway/clusterapi/*.yaml gateway/clusterprofiles/*.yaml
//go:embed konnectivity/*/*.yaml
var files embed.FS

// AuditPolicy returns the audit policy of the component gateway/audit.
func AuditPolicy() ([]byte, error) { return files.ReadFile("gateway/audit/policy.yaml") }

// kustomization is the name of the file that lists the files of a base, in the order of applying.
const kustomization = "kustomization.yaml"

// Objects returns new copies of the objects of a base, in the order of applying.
func Objects(base string) ([]*unstructured.Unstructured, error) {
	var list struct {
		Resources []string `json:"resources"`
	}
	data, err := files.ReadFile(path.Join(base, kustomization))
	if err != nil {
		return nil, err
	}
	if err := yaml.Unmarshal(data, &list); err != nil {
		return nil, fmt.Errorf("%s: %w", path.Join(base, kustomization), err)
	}
	var objects []*unstructured.Unstructured
	for _, name := range list.Resources {
		more, err := read(path.Join(base, name))
		if err != nil {
			return nil, err
		}
		objects = append(objects, more...)
	}
	return objects, nil
}

func read(name string) ([]*unstructured.Unstructured, error) {
	data, err := fs.ReadFile(files, name)
	if err != nil {
		return nil, err
	}
	var objects []*unstructured.Unstructured
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(data), len(data))
	for {
		o := &unstructured.Unstructured{}
		switch err := decoder.Decode(&o.Object); {
		case errors.Is(err, io.EOF):
			return objects, nil
		case err != nil:
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if len(o.Object) > 0 {
			objects = append(objects, o)
		}
	}
}
