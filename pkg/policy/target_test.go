// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
)

func TestSelectors(t *testing.T) {
	t.Parallel()
	got := Selectors("edge-1", map[string]string{"env": "staging", "topology.kubernetes.io/region": "eu", "empty": ""})
	want := []string{"clusters", "clusters:empty=", "clusters:env=staging", "clusters:topology.kubernetes.io/region=eu", "cluster:edge-1"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestSelectorsAreDistinct: no label of one cluster can look like the name of another, or like all
// clusters.
func TestSelectorsAreDistinct(t *testing.T) {
	t.Parallel()
	for _, labels := range []map[string]string{{"cluster": "edge-1"}, {"name": "edge-1"}, {"clusters": ""}} {
		for _, selector := range Selectors("edge-2", labels)[1:] {
			if selector == "clusters" || selector == "cluster:edge-1" {
				t.Errorf("%v: %q", labels, selector)
			}
		}
	}
}

func TestChecks(t *testing.T) {
	t.Parallel()
	jane := &user.DefaultInfo{Name: "jane"}
	for name, test := range map[string]struct {
		target Target
		want   authorizer.AttributesRecord
	}{
		"core resource": {
			Target{Resource: true, Verbs: []string{"list"}, Kind: "pods", Namespace: "shop"},
			authorizer.AttributesRecord{ResourceRequest: true, Verb: "list", Resource: "pods", Namespace: "shop"},
		},
		"subresource of a group": {
			Target{Resource: true, Verbs: []string{"patch"}, Group: "apps", Kind: "deployments", Subresource: "scale", Namespace: "shop", Name: "web"},
			authorizer.AttributesRecord{ResourceRequest: true, Verb: "patch", Resource: "deployments.apps", Subresource: "scale", Namespace: "shop", Name: "web"},
		},
		"cluster-scoped": {
			Target{Resource: true, Verbs: []string{"get"}, Group: "example.com", Kind: "widgets", Name: "w"},
			authorizer.AttributesRecord{ResourceRequest: true, Verb: "get", Resource: "widgets.example.com", Name: "w"},
		},
		"path": {
			Target{Verbs: []string{"get"}, Path: "/metrics"},
			authorizer.AttributesRecord{Verb: "get", Path: "/clusters:env=prod/metrics"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			want := test.want
			want.User = jane
			if want.ResourceRequest {
				want.APIGroup, want.APIVersion = "clusters:env=prod", "*"
			}
			if d := cmp.Diff(authorizer.Attributes(want), newCheck(jane, "clusters:env=prod", &test.target, test.target.Verbs[0])); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

// TestAddCreate lists the requests that can create something though their verb does not say so.
func TestAddCreate(t *testing.T) {
	t.Parallel()
	const apply = "application/apply-patch+yaml"
	for name, test := range map[string]struct {
		verb, group, kind, subresource string
		path                           bool
		upgrade                        bool
		contentType                    string
		create                         bool
	}{
		"get":                           {verb: "get", kind: "pods"},
		"exec over WebSocket":           {verb: "get", kind: "pods", subresource: "exec", upgrade: true, create: true},
		"exec over SPDY":                {verb: "create", kind: "pods", subresource: "exec", upgrade: true},
		"WebSocket to an application":   {verb: "get", kind: "services", subresource: "proxy", upgrade: true, create: true},
		"exec in a container by a Node": {verb: "get", kind: "nodes", subresource: "proxy", upgrade: true, create: true},
		"watch over WebSocket":          {verb: "watch", kind: "pods", upgrade: true},
		"server-side apply":             {verb: "patch", kind: "pods", contentType: apply, create: true},
		"server-side apply in CBOR":     {verb: "patch", kind: "pods", contentType: "application/apply-patch+cbor", create: true},
		"apply, odd case":               {verb: "patch", kind: "pods", contentType: "Application/Apply-Patch+YAML; charset=utf-8", create: true},
		"a patch of no known type":      {verb: "patch", kind: "pods", contentType: ";", create: true},
		"merge patch":                   {verb: "patch", kind: "pods", contentType: "application/merge-patch+json"},
		"apply to a status":             {verb: "patch", kind: "pods", subresource: "status", contentType: apply},
		"update":                        {verb: "update", kind: "pods"},
		"update of a Service":           {verb: "update", kind: "services", create: true},
		"update of a Service's status":  {verb: "update", kind: "services", subresource: "status"},
		"update of a Lease":             {verb: "update", group: "coordination.k8s.io", kind: "leases", create: true},
		"update of a Role":              {verb: "update", group: "rbac.authorization.k8s.io", kind: "roles", create: true},
		"update of a custom resource":   {verb: "update", group: "example.com", kind: "services"},
		"delete":                        {verb: "delete", kind: "services"},
		"path":                          {verb: "get", path: true, upgrade: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			target := Target{Resource: !test.path, Verbs: []string{test.verb}, Group: test.group, Kind: test.kind, Subresource: test.subresource}
			target.AddCreate(test.upgrade, test.contentType)
			want := []string{test.verb}
			if test.create {
				want = append(want, "create")
			}
			if !slices.Equal(target.Verbs, want) {
				t.Errorf("%q, want %q", target.Verbs, want)
			}
		})
	}
}
