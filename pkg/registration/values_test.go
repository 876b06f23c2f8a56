// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registration

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// allValues has every field of AgentValues.
const allValues = `
image: mirror.example.com/proxy-agent:v0.36.0
imagePullPolicy: IfNotPresent
imagePullSecrets:
- name: mirror
env:
- name: HTTPS_PROXY
  value: http://proxy.example.com:3128
- name: NO_PROXY
  valueFrom:
    configMapKeyRef: {name: site, key: no-proxy}
replicas: 3
resources:
  requests: {cpu: 20m, memory: 64Mi}
nodeSelector:
  pool: infra
tolerations:
- key: infra
  operator: Exists
  effect: NoSchedule
affinity:
  nodeAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      nodeSelectorTerms:
      - matchExpressions: [{key: kubernetes.io/arch, operator: In, values: [amd64]}]
topologySpread: false
priorityClassName: ""
labels:
  cost-center: "7"
annotations:
  sidecar.istio.io/inject: "false"
omitUser: true
`

func parseValues(t *testing.T, text string) AgentValues {
	t.Helper()
	v, err := ParseAgentValues([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestAgentValuesRefused(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ name, text, want string }{
		{"unknown field", "images: a", `unknown field "images"`},
		{"unknown field below", "tolerations: [{keys: a}]", `unknown field "tolerations[0].keys"`},
		{"other case", "Image: a", `unknown field "Image"`},
		{"twice", "image: a\nimage: b", "image"},
		{"two documents", "image: a\n---\nimage: b", "more than one YAML document"},
		{"a list", "- image", "cannot unmarshal array"},
		{"not YAML", "image: [", "yaml"},
		{"too long", "image: " + strings.Repeat("a", maxAgentValues), "at most"},
		{"quantity", "resources: {limits: {memory: much}}", "quantities must match"},
		{"image", "image: a b", "image: "},
		{"pull policy", "imagePullPolicy: Sometimes", `supported values: "Always"`},
		{"pull Secret", "imagePullSecrets: [{}]", "imagePullSecrets[0].name: Required"},
		{"variable without a name", "env: [{value: a}]", "env[0].name: Required"},
		{"variable of ours", "env: [{name: PROXY_SERVER_HOST, value: a}]", "env[0].name: Forbidden"},
		{"variable twice", "env: [{name: A}, {name: A}]", "env[1].name: Duplicate"},
		{"variable with two values", "env: [{name: A, value: b, valueFrom: {secretKeyRef: {name: a, key: b}}}]", "env[0].valueFrom"},
		{"proxy with TLS", "env: [{name: HTTPS_PROXY, value: 'https://proxy:3128'}]", "must be an HTTP proxy"},
		{"SOCKS", "env: [{name: https_proxy, value: 'socks5://proxy:1080'}]", "must be an HTTP proxy"},
		{"no agents", "replicas: 0", "replicas: "},
		{"priority class", "priorityClassName: A_B", "priorityClassName: "},
		{"node selector", "nodeSelector: {a b: c}", "nodeSelector: "},
		{"label", "labels: {a: b c}", "labels: "},
		{"label of ours", "labels: {app.kubernetes.io/name: agent}", "labels[app.kubernetes.io/name]: Forbidden"},
		{"annotation", "annotations: {a b: c}", "annotations: "},
		{"annotation of ours", "annotations: {cluster.core.oam.dev/agent-address: a}", "annotations[cluster.core.oam.dev/agent-address]: Forbidden"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if _, err := ParseAgentValues([]byte(test.text)); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want that it says %q", err, test.want)
			}
		})
	}
	if _, err := ParseAgentValues([]byte("env: [{name: HTTPS_PROXY, value: 'https://joe:hunter2@proxy'}]")); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("the error is %v", err)
	}
}

// TestAgentValuesRoundTrip checks that values are read back as they were stored, and that empty
// files store nothing.
func TestAgentValuesRoundTrip(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{"every field": allValues, "JSON": `{"image":"a"}`, "a proxy without a scheme": "env: [{name: HTTPS_PROXY, value: 'proxy:3128'}]"} {
		first, err := parseValues(t, text).Encode()
		if err != nil {
			t.Fatal(err)
		}
		second, err := parseValues(t, string(first)).Encode()
		if err != nil || string(first) != string(second) || len(first) == 0 {
			t.Errorf("%s: %q and then %q, %v", name, first, second, err)
		}
	}
	for _, text := range []string{"", "{}", "---\n", "# nothing\n", "image: ''"} {
		if stored, err := parseValues(t, text).Encode(); err != nil || stored != nil {
			t.Errorf("%q is stored as %q, %v", text, stored, err)
		}
	}
}

// TestPlanKeepsAgentValues checks which values a registration uses and stores.
func TestPlanKeepsAgentValues(t *testing.T) {
	t.Parallel()
	other := parseValues(t, "image: other")
	for _, test := range []struct {
		name          string
		stored        string
		form          Form
		given         *AgentValues
		image, inHub  string
		wantErr       string
		wantNullPatch bool
	}{
		{name: "none", form: FormPods, image: "registry.k8s.io/"},
		{name: "kept", stored: `{"image":"mine"}`, form: FormPods, image: "mine", inHub: `{"image":"mine"}`},
		{name: "replaced", stored: `{"image":"mine"}`, form: FormPods, given: &other, image: "other", inHub: `{"image":"other"}`},
		{name: "removed", stored: `{"image":"mine"}`, form: FormPods, given: &AgentValues{}, image: "registry.k8s.io/", wantNullPatch: true},
		{name: "not used now", stored: `{"image":"mine"}`, form: FormDirect, inHub: `{"image":"mine"}`},
		{name: "unusable", stored: `{"images":"mine"}`, form: FormPods, wantErr: `unknown field "images"`},
		{name: "unusable, and replaced", stored: `{"images":"mine"}`, form: FormPods, given: &other, image: "other", inHub: `{"image":"other"}`},
		{name: "unusable, and not used now", stored: `{"images":"mine"}`, form: FormDirect, inHub: `{"images":"mine"}`},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := newPlanFixture(t)
			f.registered(t, FormPods, AccessAdmin)
			if test.stored != "" {
				f.state.Hub.Secret.Data[v1alpha1.SecretKeyAgentValues] = []byte(test.stored)
			}
			p, err := NewPlan(Spec{Name: "edge", Form: test.form, Access: AccessAdmin, Now: f.now, AgentValues: test.given}, f.state)
			if test.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), test.wantErr) || !strings.Contains(err.Error(), "--agent-values") {
					t.Fatalf("got %v, want that it says %q", err, test.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := string(p.Secret.Secret().Data[v1alpha1.SecretKeyAgentValues]); got != test.inHub {
				t.Errorf("the Secret has %q, want %q", got, test.inHub)
			}
			patch, removed, err := p.Secret.Patch(f.state.Hub.Secret)
			if err != nil || len(removed) > 0 && test.form == FormPods {
				t.Errorf("removed %q, %v", removed, err)
			}
			if strings.Contains(string(patch), `"agent-values":null`) != test.wantNullPatch {
				t.Errorf("the patch is %s", patch)
			}
			// The certificate that is issued later does not lose the values.
			if err := p.SetPair(f.pair); err != nil {
				t.Fatal(err)
			}
			for _, step := range p.Steps {
				for _, o := range step.Apply {
					if o.GetKind() == "Deployment" {
						if image := containerOf(t, o).Image; !strings.HasPrefix(image, test.image) {
							t.Errorf("the image is %s, want %s", image, test.image)
						}
					}
				}
			}
		})
	}
}

func containerOf(t *testing.T, o *unstructured.Unstructured) corev1.Container {
	t.Helper()
	containers, _, err := unstructured.NestedSlice(o.Object, "spec", "template", "spec", "containers")
	if err != nil {
		t.Fatal(err)
	}
	c := containers[0].(map[string]any)
	container := corev1.Container{Image: c["image"].(string)}
	for _, variable := range c["env"].([]any) {
		container.Env = append(container.Env, corev1.EnvVar{Name: variable.(map[string]any)["name"].(string)})
	}
	return container
}

// TestInvitationKeepsAgentValues checks that the record, the Job and the agent that is applied
// afterwards have the same values.
func TestInvitationKeepsAgentValues(t *testing.T) {
	t.Parallel()
	f := newPlanFixture(t)
	spec := InvitationSpec{Name: "edge", Access: AccessAdmin, TTL: 1, Now: f.now, AgentValues: parseValues(t, allValues)}
	p, err := NewInvitationPlan(spec, f.state.Hub, f.invitation)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := p.Invitation.Secret("hub-namespace")
	if err != nil {
		t.Fatal(err)
	}
	record, err := ReadInvitation(secret)
	if err != nil {
		t.Fatal(err)
	}
	agent, err := Agent(record.Address, f.pair, record.AgentValues)
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, o := range append(p.HandOver, agent...) {
		switch o.GetKind() {
		case "PriorityClass":
			t.Errorf("%s %s is applied", o.GetKind(), o.GetName())
		case "Job", "Deployment":
			found++
			container := containerOf(t, o)
			if container.Image != "mirror.example.com/proxy-agent:v0.36.0" || !slices.ContainsFunc(container.Env, func(e corev1.EnvVar) bool { return e.Name == "HTTPS_PROXY" }) {
				t.Errorf("%s has %+v", o.GetKind(), container)
			}
		}
	}
	if found != 2 {
		t.Errorf("found %d of a Job and a Deployment", found)
	}
	// A record of an earlier version has no values.
	delete(secret.Data, recordAgentValues)
	if record, err = ReadInvitation(secret); err != nil || !record.AgentValues.isZero() {
		t.Errorf("got %+v, %v", record, err)
	}
}
