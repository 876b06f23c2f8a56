// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package rbac

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
)

// recorded is a shortened record of a kube-apiserver: a Secret that is created and read, health
// that is written, two requests without a resource, one request that was denied, and one that
// failed because the API server was overloaded. The applied ConfigMap did not exist.
const recorded = `
{"verb":"create","requestURI":"/api/v1/namespaces/system/secrets","objectRef":{"resource":"secrets","namespace":"system","name":"ca","apiVersion":"v1"},"annotations":{"authorization.k8s.io/decision":"allow"}}
{"verb":"get","requestURI":"/api/v1/namespaces/system/secrets/ca","objectRef":{"resource":"secrets","namespace":"system","name":"ca","apiVersion":"v1"},"annotations":{"authorization.k8s.io/decision":"allow"}}
{"verb":"watch","requestURI":"/api/v1/namespaces/system/secrets?watch=true","objectRef":{"resource":"secrets","namespace":"system","apiVersion":"v1"},"annotations":{"authorization.k8s.io/decision":"allow"}}
{"verb":"update","requestURI":"/apis/coordination.k8s.io/v1/namespaces/system/leases/gateway","objectRef":{"resource":"leases","namespace":"system","name":"gateway","apiGroup":"coordination.k8s.io","apiVersion":"v1"},"annotations":{"authorization.k8s.io/decision":"allow"}}
{"verb":"create","requestURI":"/api/v1/namespaces/system/serviceaccounts/gateway/token","objectRef":{"resource":"serviceaccounts","subresource":"token","namespace":"system","name":"gateway","apiVersion":"v1"},"annotations":{"authorization.k8s.io/decision":"allow"}}
{"verb":"patch","requestURI":"/api/v1/namespaces/system/configmaps/agent?fieldManager=a","objectRef":{"resource":"configmaps","namespace":"system","name":"agent","apiVersion":"v1"},"responseStatus":{"code":201},"annotations":{"authorization.k8s.io/decision":"allow"}}
{"verb":"get","requestURI":"/readyz?verbose","annotations":{"authorization.k8s.io/decision":"allow"}}
{"verb":"list","requestURI":"/api/v1/namespaces/system/pods","objectRef":{"resource":"pods","namespace":"system","apiVersion":"v1"},"responseStatus":{"code":429}}
`

const deniedToo = `{"verb":"patch","requestURI":"/api/v1/namespaces/system/secrets/ca","objectRef":{"resource":"secrets","namespace":"system","name":"ca","apiVersion":"v1"},"annotations":{"authorization.k8s.io/decision":"forbid"}}`

const refusedLater = `{"verb":"patch","requestURI":"/api/v1/namespaces/system/secrets/ca","objectRef":{"resource":"secrets","namespace":"system","name":"ca","apiVersion":"v1"},"responseStatus":{"code":403},"annotations":{"authorization.k8s.io/decision":"allow"}}`

func parseEvents(t *testing.T, text string) []event {
	t.Helper()
	var events []event
	for line := range strings.Lines(strings.TrimSpace(text)) {
		var e event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		events = append(events, e)
	}
	return events
}

// fitting returns the grants that fit the recorded events.
func fitting() []Grant {
	return []Grant{
		{Binding: "RoleBinding system/gateway", Namespace: "system", Need: NeedEverything, Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{""}, Resources: []string{"secrets"}, Verbs: []string{"create", "get", "watch"}},
			{APIGroups: []string{"coordination.k8s.io"}, Resources: []string{"leases"}, ResourceNames: []string{"gateway"}, Verbs: []string{"update"}},
			{APIGroups: []string{""}, Resources: []string{"serviceaccounts/token"}, ResourceNames: []string{"gateway"}, Verbs: []string{"create"}},
			{APIGroups: []string{""}, Resources: []string{"configmaps"}, ResourceNames: []string{"agent"}, Verbs: []string{"create", "patch"}},
		}},
		{Binding: "ClusterRoleBinding everybody", Rules: []rbacv1.PolicyRule{{NonResourceURLs: []string{"/readyz", "/api/*"}, Verbs: []string{"get"}}}},
	}
}

// TestCheck checks that fitting grants lead to no finding, and that each removed or added rule is
// found by its name.
func TestCheck(t *testing.T) {
	check := func(grants []Grant, text string) []string { return Check(Units(grants), parseEvents(t, text)) }
	if findings := check(fitting(), recorded); len(findings) > 0 {
		t.Errorf("a finding for fitting grants: %q", findings)
	}
	for _, c := range []struct {
		name   string
		record string
		change func([]Grant)
		want   string
	}{
		{"a request that was denied", recorded + deniedToo, func([]Grant) {}, "denied: patch secrets ca in namespace system"},
		{"a verb removed", recorded, func(g []Grant) { g[0].Rules[0].Verbs = []string{"create", "get"} }, "allowed by none of these rules: watch secrets in namespace system"},
		{"a rule removed", recorded, func(g []Grant) { g[0].Rules = slices.Delete(g[0].Rules, 2, 3) }, "allowed by none of these rules: create serviceaccounts/token gateway in namespace system"},
		{"a role removed", recorded, func(g []Grant) { g[1].Rules = nil }, "allowed by none of these rules: get /readyz"},
		{"another name", recorded, func(g []Grant) { g[0].Rules[1].ResourceNames = []string{"other"} }, "allowed by none of these rules: update leases.coordination.k8s.io gateway in namespace system"},
		{"a superfluous verb", recorded, func(g []Grant) { g[0].Rules[1].Verbs = []string{"update", "get"} }, "not needed: RoleBinding system/gateway: get leases.coordination.k8s.io gateway"},
		{"a superfluous name", recorded, func(g []Grant) { g[0].Rules[1].ResourceNames = []string{"gateway", "other"} }, "not needed: RoleBinding system/gateway: update leases.coordination.k8s.io other"},
		{"a superfluous resource", recorded, func(g []Grant) { g[0].Rules[2].Resources = []string{"serviceaccounts/token", "pods"} }, "not needed: RoleBinding system/gateway: create pods gateway"},
		{"a superfluous group", recorded, func(g []Grant) { g[0].Rules[1].APIGroups = []string{"coordination.k8s.io", "apps"} }, "not needed: RoleBinding system/gateway: update leases.apps gateway"},
		{"a duplicate rule", recorded, func(g []Grant) { g[1].Rules = append(g[1].Rules, g[0].Rules[1]) }, "not needed: RoleBinding system/gateway: update leases.coordination.k8s.io gateway"},
		{"no permission to create what is applied", recorded, func(g []Grant) { g[0].Rules[3].Verbs = []string{"patch"} }, "allowed by none of these rules: create configmaps agent in namespace system"},
		{"a patch that was refused later", recorded + refusedLater, func([]Grant) {}, "denied: patch secrets ca in namespace system"},
		// A permission to create cannot be limited to names: the name is not known when it is checked.
		{"a name for a permission to create", recorded, func(g []Grant) { g[0].Rules[0].ResourceNames = []string{"ca"} }, "allowed by none of these rules: create secrets in namespace system"},
		{"a role of Kubernetes that no request needs", recorded, func(g []Grant) { g[1].Need = NeedEachRule; g[1].Rules[0].NonResourceURLs = []string{"/version"} }, "not needed: ClusterRoleBinding everybody: get /version"},
	} {
		t.Run(c.name, func(t *testing.T) {
			grants := fitting()
			c.change(grants)
			if findings := check(grants, c.record); !slices.Contains(findings, c.want) {
				t.Errorf("findings %q, want %q", findings, c.want)
			}
		})
	}
}
