// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/oam-dev/cluster-gateway/pkg/policy"
)

func TestParseAction(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		verb, resource, name, namespace string
		want                            policy.Target
		door                            []string
		err                             string
	}{
		{verb: "list", resource: "pods", namespace: "shop", want: policy.Target{Resource: true, Verbs: []string{"list"}, Kind: "pods", Namespace: "shop"}, door: []string{"get"}},
		{verb: "LIST", resource: "pods", want: policy.Target{Resource: true, Verbs: []string{"list"}, Kind: "pods"}, door: []string{"get"}},
		{
			verb: "patch", resource: "deployments.apps/scale", name: "web",
			want: policy.Target{Resource: true, Verbs: []string{"patch"}, Group: "apps", Kind: "deployments", Subresource: "scale", Name: "web"}, door: []string{"patch"},
		},
		{
			verb: "create", resource: "pods/exec",
			want: policy.Target{Resource: true, Verbs: []string{"get", "create"}, Kind: "pods", Subresource: "exec"}, door: []string{"get", "create"},
		},
		{verb: "deletecollection", resource: "widgets.example.com", want: policy.Target{Resource: true, Verbs: []string{"deletecollection"}, Group: "example.com", Kind: "widgets"}, door: []string{"delete"}},
		{verb: "get", resource: "/metrics", want: policy.Target{Verbs: []string{"get"}, Path: "/metrics"}, door: []string{"get"}},
		{verb: "post", resource: "/x", want: policy.Target{Verbs: []string{"post"}, Path: "/x"}, door: []string{"create"}},
		{verb: "get", resource: "/metrics", name: "x", err: `invalid RESOURCE "/metrics": a path has no name and no namespace`},
		{verb: "get", resource: "pods/", err: `invalid RESOURCE "pods/": must be RESOURCE[.GROUP][/SUBRESOURCE] or a path that begins with /`},
		{verb: "get", resource: "pods.", err: `invalid RESOURCE "pods.": must be RESOURCE[.GROUP][/SUBRESOURCE] or a path that begins with /`},
		{verb: "get", resource: ".apps", err: `invalid RESOURCE ".apps": must be RESOURCE[.GROUP][/SUBRESOURCE] or a path that begins with /`},
		{verb: "get", resource: "pods/log/x", err: `invalid RESOURCE "pods/log/x": must be RESOURCE[.GROUP][/SUBRESOURCE] or a path that begins with /`},
	} {
		var names []string
		if test.name != "" {
			names = []string{test.name}
		}
		got, err := parseAction(test.verb, test.resource, names, test.namespace)
		if test.err != "" {
			if err == nil || err.Error() != test.err {
				t.Errorf("%s: %v, want %s", test.resource, err, test.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", test.resource, err)
		}
		if d := cmp.Diff(test.want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", test.resource, d)
		}
		if door := doorVerbs(&got); !slices.Equal(door, test.door) {
			t.Errorf("%s %s: the door needs %q, want %q", test.verb, test.resource, door, test.door)
		}
	}
}

func TestImpliedGroups(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ given, want []string }{
		"jane":                           {[]string{"developers"}, []string{"developers", "system:authenticated"}},
		"system:serviceaccount:shop:web": {nil, []string{"system:serviceaccounts", "system:serviceaccounts:shop", "system:authenticated"}},
		"system:anonymous":               {nil, []string{"system:unauthenticated"}},
		"joe":                            {[]string{"system:authenticated"}, []string{"system:authenticated"}},
	} {
		if got := impliedGroups(name, test.given); !slices.Equal(got, test.want) {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
}

func TestCanI(t *testing.T) {
	t.Parallel()
	const reviews = "POST /apis/authorization.k8s.io/v1/subjectaccessreviews"
	h := newFakeHub(t)
	c := testCluster("edge-1", "tunnel")
	c.Labels = map[string]string{"env": "staging"}
	h.add(c)
	h.answer(reviews, review(map[string]any{"allowed": true, "reason": "RBAC"}))
	out, _, err := h.run(t, "can-i", "jane", "edge-1", "list", "pods", "-n", "shop")
	if err != nil {
		t.Fatal(err)
	}
	const allowed = `yes

ALLOWED   VERB   ON                                                             REASON
yes       get    clustergateways/proxy edge-1 in API group cluster.core.oam.dev   RBAC
yes       list   pods in API group clusters, namespace shop                     RBAC
yes       list   pods in API group clusters:env=staging, namespace shop         RBAC
yes       list   pods in API group cluster:edge-1, namespace shop               RBAC
`
	if d := cmp.Diff(squeeze(allowed), squeeze(out)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	h.answer(reviews, review(map[string]any{"allowed": false}))
	out, errOut, err := h.run(t, "can-i", "jane", "edge-1", "list", "pods")
	if !errors.Is(err, errNotAllowed) || out[:3] != "no\n" || errOut == "" {
		t.Errorf("%v %s %s", err, out, errOut)
	}
	if _, _, err := h.run(t, "can-i", "jane", "edge-2", "list", "pods"); err == nil || errors.Is(err, errNotAllowed) {
		t.Errorf("a cluster that is not registered: %v", err)
	}
}

// squeeze replaces the spaces between columns by one.
func squeeze(text string) string {
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		lines[i] = strings.Join(strings.Fields(line), " ")
	}
	return strings.Join(lines, "\n")
}
