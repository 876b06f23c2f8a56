// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package charts

import (
	"cmp"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	sigsyaml "sigs.k8s.io/yaml"

	"github.com/oam-dev/cluster-gateway/pkg/pki"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

const (
	agentChart     = "../../../charts/cluster-gateway-agent"
	agentNamespace = "cluster-gateway-agent"
)

// invitation returns an invitation with a real certificate, and the objects in its file.
func invitation(t *testing.T, access, agentValues string) (*registration.Invitation, objects) {
	t.Helper()
	return invitationOf(t, registration.Spec{Access: access}, agentValues)
}

// invitationOf is invitation with an access and an identity.
func invitationOf(t *testing.T, spec registration.Spec, agentValues string) (*registration.Invitation, objects) {
	t.Helper()
	given, err := spec.WithIdentity(nil)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	authority, err := pki.NewAuthority(24 * time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	pair, _, err := registration.IssueAgentPair(authority, "edge-1", time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := registration.ParseAgentValues([]byte(agentValues))
	if err != nil {
		t.Fatal(err)
	}
	plan, err := registration.NewInvitationPlan(registration.InvitationSpec{
		Name: "edge-1", Access: given.Access, Impersonation: given.Impersonation, TTL: 24 * time.Hour, TokenLifetime: time.Hour, CertificateLifetime: time.Hour, AgentValues: parsed, Now: now,
	}, registration.HubState{UID: "hub", Namespace: namespace, TunnelAddress: "tunnel.example.com:8132", TunnelCA: pair.CA}, pair)
	if err != nil {
		t.Fatal(err)
	}
	file := objects{}
	for _, o := range plan.HandOver {
		text, err := json.Marshal(o.Object)
		if err != nil {
			t.Fatal(err)
		}
		file.decode(t, o.GetName(), string(text))
	}
	return plan.Invitation, file
}

// invitedValues returns the values for an invitation, as README.md says: the data of its Secret.
func invitedValues(t *testing.T, access, agentValues string, file objects) string {
	t.Helper()
	set := map[string]any{
		"access":     access,
		"invitation": map[string]any{"data": file["Secret "+agentNamespace+" "+registration.EnrollName].Object["data"]},
	}
	if agentValues != "" {
		set["agentValues"] = values(t, agentValues)
	}
	text, err := sigsyaml.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// site has every value of an agent.
const site = `
image: mirror.example.com/proxy-agent:v1
imagePullPolicy: Always
imagePullSecrets: [{name: mirror}]
env: [{name: HTTPS_PROXY, value: "http://proxy.example.com:3128"}]
replicas: 3
resources: {limits: {memory: 128Mi}}
nodeSelector: {disk: ssd}
tolerations: [{operator: Exists}]
affinity: {podAntiAffinity: {}}
topologySpread: false
priorityClassName: mine
labels: {team: a}
annotations: {note: b}
omitUser: true
`

// TestAgentChartIsTheInvitation compares the chart, object by object and field by field, with the
// file of an invitation, which the product's own code makes.
func TestAgentChartIsTheInvitation(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ access, agentValues string }{
		"defaults":     {"admin", ""},
		"view":         {"view", ""},
		"another role": {"team:reader", ""},
		"a site":       {"admin", site},
		"no class":     {"admin", "priorityClassName: ''"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, want := invitation(t, c.access, c.agentValues)
			got, _, err := renderIn(t, agentNamespace, agentChart, invitedValues(t, c.access, c.agentValues, want))
			if err != nil {
				t.Fatal(err)
			}
			// Helm and the tools for GitOps create the namespace, and the gateway completes it.
			delete(want, "Namespace  "+agentNamespace)
			compare(t, got, want)
		})
	}
}

// TestAgentChartImpersonates is TestAgentChartIsTheInvitation for clusters that see their callers.
func TestAgentChartImpersonates(t *testing.T) {
	t.Parallel()
	all := registration.Impersonation{
		AdminGroups: []string{"platform", "true"}, ViewGroups: []string{"a: b"}, Groups: []string{"platform", "a: b", "true", "others"},
		Users: []string{"jane", "123"}, ExtraKeys: []string{"example.com/key"},
	}
	unconstrained := all
	unconstrained.Unconstrained = true
	for name, spec := range map[string]registration.Spec{
		"defaults":      {Identity: "impersonate"},
		"view":          {Identity: "impersonate", Access: "view", Impersonation: &registration.Impersonation{ViewGroups: []string{"developers"}}},
		"all":           {Impersonation: &all},
		"unconstrained": {Identity: "impersonate", Access: "admin", Impersonation: &unconstrained},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, want := invitationOf(t, spec, "")
			set := map[string]any{"identity": "impersonate"}
			if i := spec.Impersonation; i != nil {
				text, err := json.Marshal(i)
				if err != nil {
					t.Fatal(err)
				}
				set["impersonation"] = values(t, string(text))
			}
			text, err := sigsyaml.Marshal(set)
			if err != nil {
				t.Fatal(err)
			}
			got, _, err := renderIn(t, agentNamespace, agentChart, invitedValues(t, cmp.Or(spec.Access, "admin"), "", want)+string(text))
			if err != nil {
				t.Fatal(err)
			}
			delete(want, "Namespace  "+agentNamespace)
			if want["ClusterRole  cluster-gateway-agent:impersonate"] == nil {
				t.Fatalf("the invitation has only %q", slices.Sorted(maps.Keys(want)))
			}
			compare(t, got, want)
		})
	}
}

// compare compares the objects of a chart with those of the product, apart from the label of the
// tool that manages them.
func compare(t *testing.T, got, want objects) {
	t.Helper()
	if a, b := slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)); !slices.Equal(a, b) {
		t.Fatalf("the chart has the objects\n%s\nand should have\n%s", strings.Join(a, "\n"), strings.Join(b, "\n"))
	}
	for key, w := range want {
		unstructured.RemoveNestedField(w.Object, "metadata", "labels", "app.kubernetes.io/managed-by")
		unstructured.RemoveNestedField(w.Object, "metadata", "creationTimestamp")
		unstructured.RemoveNestedField(w.Object, "status")
		g := got[key]
		withoutHelmLabels(g, w)
		if !reflect.DeepEqual(g.Object, w.Object) {
			a, _ := sigsyaml.Marshal(g.Object)
			b, _ := sigsyaml.Marshal(w.Object)
			t.Errorf("%s: the chart has\n%s\nand should have\n%s", key, a, b)
		}
	}
}

// TestAgentChartWithSecret checks an invitation in a Secret that is not in the chart: the chart is
// the same, apart from the name of the Secret.
func TestAgentChartWithSecret(t *testing.T) {
	t.Parallel()
	record, want := invitation(t, "admin", "")
	job := record.JobName()
	got, _, err := renderIn(t, agentNamespace, agentChart, "invitation: {secretName: mine, id: "+job[len(job)-8:]+"}")
	if err != nil {
		t.Fatal(err)
	}
	delete(want, "Namespace  "+agentNamespace)
	delete(want, "Secret "+agentNamespace+" "+registration.EnrollName)
	key := "Job " + agentNamespace + " " + job
	if got[key] == nil || want[key] == nil {
		t.Fatalf("no %s in %q or %q", key, slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
	}
	text, err := json.Marshal(want[key].Object)
	if err != nil {
		t.Fatal(err)
	}
	renamed := regexp.MustCompile(`"(name|secretName)":"`+registration.EnrollName+`"`).ReplaceAllString(string(text), `"$1":"mine"`)
	delete(want, key)
	want.decode(t, key, renamed)
	unstructured.RemoveNestedField(want[key].Object, "metadata", "creationTimestamp")
	compare(t, got, want)
}

// TestAgentChartWithoutInvitation checks what stays in the chart when the cluster is registered:
// nothing that the gateway deletes after the registration, and nothing that it changes later, when
// it renews credentials. So a tool that restores the objects of the chart restores nothing of that.
func TestAgentChartWithoutInvitation(t *testing.T) {
	t.Parallel()
	got, _, err := renderIn(t, agentNamespace, agentChart, "")
	if err != nil {
		t.Fatal(err)
	}
	_, file := invitation(t, "admin", "")
	if len(got) < 8 {
		t.Errorf("the chart has only %q", slices.Sorted(maps.Keys(got)))
	}
	for key, o := range got {
		if strings.Contains(o.GetName(), "enrol") {
			t.Errorf("%s is only for the registration", key)
		}
		if file[key] == nil {
			t.Errorf("%s is not in the file of an invitation", key)
		}
	}
	agent, err := registration.Agent("tunnel.example.com:8132", registration.AgentPair{}, registration.AgentValues{})
	if err != nil {
		t.Fatal(err)
	}
	written := 0
	for _, o := range agent {
		switch o.GetKind() {
		case "Deployment", "ConfigMap", "Secret": // pkg/enrollment applies these
			written++
			if key := strings.Join([]string{o.GetKind(), o.GetNamespace(), o.GetName()}, " "); got[key] != nil {
				t.Errorf("%s is in the chart, and the gateway writes it", key)
			}
		}
	}
	if written != 3 {
		t.Errorf("the agent has %d objects that the gateway writes", written)
	}
}

// TestAgentChartLint runs helm lint.
func TestAgentChartLint(t *testing.T) {
	t.Parallel()
	_, file := invitation(t, "admin", "")
	for _, set := range []string{"", invitedValues(t, "view", site, file)} {
		for _, p := range lint.RunAll(agentChart, values(t, set), agentNamespace).Messages {
			if p.Severity > 1 { // an icon is only recommended
				t.Errorf("helm lint: %s: %v", p.Path, p.Err)
			}
		}
	}
}

// TestAgentChartRefuses checks that wrong values are refused, and named.
func TestAgentChartRefuses(t *testing.T) {
	t.Parallel()
	for set, want := range map[string]string{
		"acces: view":         "acces",
		"access: impersonate": "access",
		"access: ''":          "access",
		"identity: rules":     "identity",
		"identity: impersonate\naccess: team:reader":                                               "must be admin or view",
		"impersonation: {adminGroups: [a]}":                                                        "impersonation.adminGroups requires identity impersonate",
		"identity: impersonate\nimpersonation: {adminGroups: ['system:masters']}":                  "adminGroups",
		"identity: impersonate\nimpersonation: {users: ['*']}":                                     "users",
		"identity: impersonate\nimpersonation: {users: [' a']}":                                    "users",
		"identity: impersonate\nimpersonation: {users: [a, a]}":                                    "users",
		"identity: impersonate\nimpersonation: {extraKeys: [Scopes]}":                              "extraKeys",
		"identity: impersonate\nimpersonation: {group: [a]}":                                       "group",
		"identity: impersonate\nimpersonation: {groups: [a], viewGroups: [b]}":                     "must have the group \"b\"",
		"invitation: {secretName: mine}":                                                           "requires invitation.id",
		"invitation: {id: 0123abcd}":                                                               "invitation.id is for invitation.secretName",
		"invitation: {secretName: mine, id: 123}":                                                  "id",
		"invitation: {data: {tls.crt: YQ==}}":                                                      "invitation.data has no tls.key",
		"invitation: {data: {token: YQ==}}":                                                        "token",
		"invitation: {data: {tls.crt: YQ==, tls.key: YQ==, ca.crt: YQ==, host: YQ==, port: YQ==}}": "tls.crt has no certificate",
		"invitation: {secretName: mine, id: 0123abcd, data: {tls.crt: YQ==}}":                      "cannot be set together",
		"agentValues: {imagePullPolicy: never}":                                                    "imagePullPolicy",
		"agentValues: {toleration: []}":                                                            "toleration",
	} {
		if _, _, err := renderIn(t, agentNamespace, agentChart, set); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want that it names %q", set, err, want)
		}
	}
	if _, _, err := renderIn(t, "default", agentChart, ""); err == nil || !strings.Contains(err.Error(), "must be in the namespace cluster-gateway-agent") {
		t.Errorf("another namespace: got %v", err)
	}
}

// TestAgentChartValues checks that README.md describes each value, and that the schema has the
// fields of the product.
func TestAgentChartValues(t *testing.T) {
	t.Parallel()
	defaults, err := os.ReadFile(filepath.Join(agentChart, "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile(filepath.Join(agentChart, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths(values(t, string(defaults)), "") {
		if !strings.Contains(string(readme), "`"+path+"`") {
			t.Errorf("README.md does not describe the value %s", path)
		}
	}
	schema, err := os.ReadFile(filepath.Join(agentChart, "values.schema.json"))
	if err != nil {
		t.Fatal(err)
	}
	fields, _, err := unstructured.NestedMap(values(t, string(schema)), "properties", "agentValues", "properties")
	if err != nil {
		t.Fatal(err)
	}
	want := fieldsOf[registration.AgentValues]()
	impersonation, _, err := unstructured.NestedMap(values(t, string(schema)), "properties", "impersonation", "properties")
	if err != nil {
		t.Fatal(err)
	}
	// The value access says whether the gateway can only read.
	product := slices.DeleteFunc(fieldsOf[registration.Impersonation](), func(name string) bool { return name == "readOnly" })
	if got := slices.Sorted(maps.Keys(impersonation)); !slices.Equal(got, product) {
		t.Errorf("the schema has the fields %q for impersonation, and the product has %q", got, product)
	}
	if got := slices.Sorted(maps.Keys(fields)); !slices.Equal(got, want) {
		t.Errorf("the schema has the fields %q, and the product has %q", got, want)
	}
	if set := slices.Sorted(maps.Keys(values(t, site))); !slices.Equal(set, want) {
		t.Errorf("this test sets the fields %q, and the product has %q", set, want)
	}
}

// fieldsOf returns the names of the fields of a type in JSON, sorted.
func fieldsOf[T any]() []string {
	var names []string
	for i := range reflect.TypeFor[T]().NumField() {
		name, _, _ := strings.Cut(reflect.TypeFor[T]().Field(i).Tag.Get("json"), ",")
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
