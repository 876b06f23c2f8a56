// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registration

import (
	"encoding/base64"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

var update = flag.Bool("update", false, "write the golden files in testdata")

// planText is what a golden file holds.
type planText struct {
	NewToken       bool       `json:"newToken"`
	NewMaintenance bool       `json:"newMaintenanceToken"`
	NewCertificate bool       `json:"newCertificate"`
	Notes          []string   `json:"notes,omitempty"`
	Rights         rightsText `json:"rights"`
	Steps          []stepText `json:"steps"`
	HandOver       []any      `json:"handOver,omitempty"`
}

type rightsText struct {
	Hub     []string    `json:"hub"`
	Cluster []string    `json:"cluster,omitempty"`
	Grants  []grantText `json:"grants,omitempty"`
}

type grantText struct {
	Exempt []string `json:"exempt"`
	Rights []string `json:"rights"`
}

type stepText struct {
	Name   StepName `json:"name"`
	Side   Side     `json:"side,omitempty"`
	Apply  []any    `json:"apply,omitempty"`
	Remove []string `json:"remove,omitempty"`
}

func rightTexts(rights []Right) []string {
	var lines []string
	for _, r := range rights {
		resource := r.Resource
		if r.Subresource != "" {
			resource += "/" + r.Subresource
		}
		lines = append(lines, strings.TrimSpace(fmt.Sprintf("%s %s.%s %s/%s", r.Verb, resource, r.Group, r.Namespace, r.Name)))
	}
	return lines
}

func textOf(t *testing.T, p *Plan) planText {
	t.Helper()
	rights, err := p.Rights()
	if err != nil {
		t.Fatal(err)
	}
	text := planText{
		NewToken: p.NewToken, NewMaintenance: p.NewMaintenanceToken, NewCertificate: p.NewCertificate, Notes: p.Notes,
		Rights: rightsText{Hub: rightTexts(rights.Hub), Cluster: rightTexts(rights.Cluster)},
	}
	for _, g := range rights.Grants {
		text.Rights.Grants = append(text.Rights.Grants, grantText{rightTexts(g.Exempt), rightTexts(g.Rights)})
	}
	for _, s := range p.Steps {
		step := stepText{Name: s.Name, Side: s.Side}
		for _, o := range s.Apply {
			step.Apply = append(step.Apply, Redacted(o).Object)
		}
		for _, o := range s.Remove {
			step.Remove = append(step.Remove, o.GetKind()+" "+o.GetNamespace()+"/"+o.GetName())
		}
		text.Steps = append(text.Steps, step)
	}
	for _, o := range p.HandOver {
		text.HandOver = append(text.HandOver, Redacted(o).Object)
	}
	return text
}

// planFixture is a hub and a cluster, and credentials that are good at its time. Their values
// differ from run to run; names replaces them in golden files.
type planFixture struct {
	state State
	now   time.Time
	pair  AgentPair
	token string
	names *strings.Replacer
	// invitation is the certificate of an invitation.
	invitation AgentPair
}

func newPlanFixture(t *testing.T) *planFixture {
	t.Helper()
	authority := newAuthority(t)
	f := &planFixture{now: time.Now().UTC().Truncate(time.Second)}
	var err error
	if f.pair, _, err = IssueAgentPair(authority, "edge", 30*time.Minute, f.now); err != nil {
		t.Fatal(err)
	}
	f.invitation.CA = authority.Bundle()
	if f.invitation.Certificate, f.invitation.Key, err = authority.IssueInvitation("edge", 30*time.Minute); err != nil {
		t.Fatal(err)
	}
	f.token = "header." + base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"iat":%d,"exp":%d}`, f.now.Unix(), f.now.Add(time.Hour).Unix())) + ".signature"
	f.state = State{
		Hub: HubState{UID: "hub-uid", Namespace: "hub-namespace", TunnelAddress: "gateway.example.com:8132", TunnelCA: authority.Bundle()},
		Cluster: ClusterState{
			UID: "cluster-uid", RootCA: authority.Bundle(),
			Server: ServerInfo{URL: "https://10.0.0.1:6443", ServerName: "kubernetes", CA: authority.Bundle()},
		},
	}
	encode := base64.StdEncoding.EncodeToString
	placeholderPair := AgentPair{Certificate: []byte(placeholder), CA: authority.Bundle()}
	f.names = strings.NewReplacer(
		encode(f.pair.Certificate), "<certificate>", encode(authority.Bundle()), "<CA>", encode(f.invitation.Certificate), "<invitation>",
		f.pair.Hash(), "<hash>", placeholderPair.Hash(), "<hash of the placeholder>", encode([]byte(f.now.Add(time.Hour).Format(time.RFC3339))), "<in an hour>",
		f.now.Format(time.RFC3339), "<now>",
	)
	return f
}

// plan completes a spec and plans it.
func (f *planFixture) plan(spec Spec) (*Plan, error) {
	spec, err := spec.WithIdentity(f.state.Hub.Secret)
	if err != nil {
		return nil, err
	}
	return NewPlan(spec, f.state)
}

// registered adds what an earlier registration of this form left.
func (f *planFixture) registered(t *testing.T, form Form, access string) {
	t.Helper()
	p, err := f.plan(Spec{Name: "edge", Form: form, Access: access, Now: f.now})
	if err != nil {
		t.Fatal(err)
	}
	p.SetToken(f.token)
	p.SetMaintenanceToken(f.token)
	secret := p.Secret.Secret()
	secret.UID, secret.ResourceVersion = "secret-uid", "7"
	f.state.Hub.Secret = secret
	f.state.Cluster.TokenAccepted, f.state.Cluster.MaintenanceTokenAccepted = true, true
	f.state.Cluster.Namespace = &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: AgentNamespace, UID: "namespace-uid",
		Annotations: map[string]string{v1alpha1.AnnotationClusterName: "edge", v1alpha1.AnnotationHubUID: "hub-uid"},
	}}
	role := AccessOf(access).Role
	f.state.Cluster.Bindings = []rbacv1.ClusterRoleBinding{{
		ObjectMeta: metav1.ObjectMeta{Name: AccessPrefix + "access:" + role}, RoleRef: rbacv1.RoleRef{Name: role},
	}}
	f.state.Cluster.Pair = &f.pair
}

// TestPlan compares the whole plan, and the rights that it needs, for each form of a registration.
// If a change is intended: go test ./pkg/registration -run TestPlan -update, and read the
// difference.
func TestPlan(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		spec  Spec
		state func(t *testing.T, f *planFixture)
	}{
		{"pods", Spec{Form: FormPods, Access: AccessAdmin}, nil},
		{"pods-values", Spec{Form: FormPods, Access: AccessAdmin, AgentValues: ptr.To(parseValues(t, allValues))}, nil},
		{"process", Spec{Form: FormProcess, Access: AccessView}, nil},
		{"direct", Spec{Form: FormDirect, Access: AccessImpersonate}, nil},
		{"impersonate", Spec{Form: FormPods, Access: AccessView, Identity: v1alpha1.IdentityImpersonate, Impersonation: &Impersonation{
			Users: []string{"jane"}, Groups: []string{"dev", "ops"}, ExtraKeys: []string{"example.com/team"}, AdminGroups: []string{"ops"}, ViewGroups: []string{"dev"},
		}}, nil},
		{"credential-again", Spec{Form: FormDirect, Identity: v1alpha1.IdentityCredential}, func(t *testing.T, f *planFixture) {
			f.registered(t, FormDirect, AccessImpersonate)
			f.state.Hub.Secret.Annotations[v1alpha1.AnnotationIdentity] = v1alpha1.IdentityImpersonate
			f.state.Hub.Secret.Annotations[v1alpha1.AnnotationImpersonation] = "{}"
		}},
		{"adopt", Spec{Form: FormDirect, Access: AccessAdmin, Adopt: true}, func(_ *testing.T, f *planFixture) {
			f.state.Hub.Secret = &corev1.Secret{
				ObjectMeta: metav1.ObjectMeta{Namespace: "hub-namespace", Name: "edge", UID: "secret-uid", ResourceVersion: "7", Labels: map[string]string{v1alpha1.LabelCredentialType: "X509Certificate"}},
				Type:       corev1.SecretTypeOpaque,
				Data:       map[string][]byte{v1alpha1.SecretKeyEndpoint: []byte("https://elsewhere"), v1alpha1.SecretKeyCert: []byte("c"), v1alpha1.SecretKeyPrivateKey: []byte("k")},
			}
		}},
		{"repeated", Spec{Form: FormPods, Access: AccessAdmin}, func(t *testing.T, f *planFixture) { f.registered(t, FormPods, AccessAdmin) }},
		{"taken-over", Spec{Form: FormPods, Access: AccessAdmin, TakeOver: true}, func(t *testing.T, f *planFixture) {
			// The Secrets of the hub were restored into a new one.
			f.registered(t, FormPods, AccessAdmin)
			f.state.Cluster.Namespace.Annotations[v1alpha1.AnnotationHubUID] = "old-hub"
		}},
		{"one-credential-before", Spec{Form: FormPods, Access: AccessView}, func(t *testing.T, f *planFixture) {
			f.registered(t, FormPods, AccessView)
			delete(f.state.Hub.Secret.Data, v1alpha1.SecretKeyMaintenanceToken)
			f.state.Cluster.MaintenanceTokenAccepted, f.state.Cluster.SharedRights = false, SharedRights()
		}},
		{"other-form-before", Spec{Form: FormDirect, Access: AccessView}, func(t *testing.T, f *planFixture) {
			f.registered(t, FormPods, AccessImpersonate)
			all, err := agentReferences()
			if err != nil {
				t.Fatal(err)
			}
			f.state.Cluster.Agent, f.state.Cluster.AgentUnread = all[1:], all[:1]
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := newPlanFixture(t)
			if test.state != nil {
				test.state(t, f)
			}
			test.spec.Name, test.spec.Now = "edge", f.now
			p, err := f.plan(test.spec)
			if err != nil {
				t.Fatal(err)
			}
			f.golden(t, test.name, p)
		})
	}
	for name, change := range map[string]func(spec *InvitationSpec){
		"invitation":         func(*InvitationSpec) {},
		"invitation-process": func(spec *InvitationSpec) { spec.Process, spec.Endpoint = true, "https://10.0.0.1:6443" },
		"invitation-impersonate": func(spec *InvitationSpec) {
			spec.Access, spec.Impersonation = AccessImpersonate, &Impersonation{Groups: []string{"ops"}, AdminGroups: []string{"ops"}, Unconstrained: true}
		},
		"invitation-values": func(spec *InvitationSpec) { spec.AgentValues = parseValues(t, allValues) },
	} {
		spec := InvitationSpec{Name: "edge", Access: AccessAdmin, TTL: time.Hour, TokenLifetime: time.Hour, CertificateLifetime: 2 * time.Hour}
		change(&spec)
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newPlanFixture(t)
			spec := spec
			spec.Now = f.now
			p, err := NewInvitationPlan(spec, f.state.Hub, f.invitation)
			if err != nil {
				t.Fatal(err)
			}
			f.names = strings.NewReplacer(p.Invitation.Fingerprint, "<fingerprint>", p.Invitation.Fingerprint[:8], "<fp>",
				base64.StdEncoding.EncodeToString([]byte(p.Invitation.Fingerprint)), "<fingerprint>",
				base64.StdEncoding.EncodeToString(f.invitation.Certificate), "<invitation>", base64.StdEncoding.EncodeToString(f.invitation.CA), "<CA>",
				base64.StdEncoding.EncodeToString([]byte(f.now.Add(time.Hour).Format(time.RFC3339))), "<in an hour>")
			f.golden(t, name, p)
		})
	}
}

func (f *planFixture) golden(t *testing.T, name string, p *Plan) {
	t.Helper()
	data, err := yaml.Marshal(textOf(t, p))
	if err != nil {
		t.Fatal(err)
	}
	got := f.names.Replace(string(data))
	for what, secret := range map[string]string{"the token": f.token, "a key": base64.StdEncoding.EncodeToString(f.pair.Key), "the invitation's key": base64.StdEncoding.EncodeToString(f.invitation.Key)} {
		if strings.Contains(got, secret) || strings.Contains(got, base64.StdEncoding.EncodeToString([]byte(secret))) {
			t.Errorf("the plan shows %s", what)
		}
	}
	path := filepath.Join("testdata", name+".yaml")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	gotLines, wantLines := strings.Split(got, "\n"), strings.Split(string(want), "\n")
	for i := range max(len(gotLines), len(wantLines)) {
		var g, w string
		if i < len(gotLines) {
			g = gotLines[i]
		}
		if i < len(wantLines) {
			w = wantLines[i]
		}
		if g != w {
			t.Fatalf("%s:%d differs (to accept all changes: go test ./pkg/registration -run TestPlan -update)\ngot  %s\nwant %s", path, i+1, g, w)
		}
	}
}

// TestPlanRefuses shows what is refused before anything is changed.
func TestPlanRefuses(t *testing.T) {
	t.Parallel()
	secret := func(uid string, secretType corev1.SecretType) *corev1.Secret {
		s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "hub-namespace", Name: "edge"}, Type: secretType}
		if uid != "" {
			s.Annotations = map[string]string{v1alpha1.AnnotationClusterUID: uid}
		}
		return s
	}
	for _, test := range []struct {
		name   string
		change func(spec *Spec, state *State)
		want   string
	}{
		{"another cluster's name", func(spec *Spec, s *State) { s.Hub.Secret, spec.Adopt = secret("other", corev1.SecretTypeOpaque), true }, "is taken: it is registered to another cluster"},
		{"a Secret that is not a cluster", func(_ *Spec, s *State) { s.Hub.Secret = secret("", corev1.SecretTypeOpaque) }, "--adopt"},
		{"a Secret of another type", func(spec *Spec, s *State) { s.Hub.Secret, spec.Adopt = secret("", corev1.SecretTypeTLS), true }, "kubernetes.io/tls"},
		{"another name for the cluster", func(_ *Spec, s *State) {
			s.Cluster.Namespace = &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{v1alpha1.AnnotationClusterName: "old", v1alpha1.AnnotationHubUID: "hub-uid"}}}
		}, `registered already, as "old"`},
		{"another hub", func(_ *Spec, s *State) {
			s.Cluster.Namespace = &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{v1alpha1.AnnotationClusterName: "old", v1alpha1.AnnotationHubUID: "old-hub"}}}
		}, "agent-bootstrap register old --cluster-kubeconfig FILE --take-over"},
		{"another name on this hub, taken over", func(spec *Spec, s *State) {
			spec.TakeOver = true
			s.Cluster.Namespace = &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{v1alpha1.AnnotationClusterName: "old", v1alpha1.AnnotationHubUID: "hub-uid"}}}
		}, `registered already, as "old"`},
		{"another cluster's name, taken over", func(spec *Spec, s *State) {
			s.Hub.Secret, spec.TakeOver = secret("other", corev1.SecretTypeOpaque), true
		}, "is taken: it is registered to another cluster"},
		{"no ClusterRole", func(spec *Spec, s *State) { spec.Access, s.Cluster.AccessRoleMissing = "nothing", true }, `no ClusterRole of that name`},
		{"a role with impersonation", func(spec *Spec, _ *State) { spec.Identity, spec.Access = v1alpha1.IdentityImpersonate, "edit" }, `with --identity=impersonate it must be admin or view`},
		{"bounds without impersonation", func(spec *Spec, _ *State) { spec.Impersonation = &Impersonation{Users: []string{"jane"}} }, "require --identity=impersonate"},
		{"no CA", func(_ *Spec, s *State) { s.Cluster.RootCA, s.Cluster.Server.CA = nil, nil }, "the cluster's CA is not known"},
		{"an endpoint that the gateway cannot use", func(spec *Spec, _ *State) { spec.Endpoint = "http://a" }, "only https is allowed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := newPlanFixture(t)
			spec := Spec{Name: "edge", Form: FormPods, Access: AccessAdmin, Now: f.now}
			test.change(&spec, &f.state)
			if _, err := f.plan(spec); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

// TestPlanKeeps shows when a repeated registration keeps the token and the certificate.
func TestPlanKeeps(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name                     string
		change                   func(spec *Spec, f *planFixture)
		newToken, newCertificate bool
	}{
		{"nothing changed", func(*Spec, *planFixture) {}, false, false},
		{"access", func(spec *Spec, _ *planFixture) { spec.Access = AccessView }, false, false},
		{"endpoint", func(spec *Spec, _ *planFixture) { spec.Endpoint = "https://10.0.0.2:6443" }, true, false},
		{"a key that somebody added", func(_ *Spec, f *planFixture) {
			f.state.Hub.Secret.Data[v1alpha1.SecretKeyProxyURL] = []byte("http://p")
		}, true, false},
		{"verification switched off", func(_ *Spec, f *planFixture) {
			f.state.Hub.Secret.Annotations[v1alpha1.AnnotationInsecureSkipTLSVerify] = "true"
		}, true, false},
		{"token rejected", func(_ *Spec, f *planFixture) { f.state.Cluster.TokenAccepted = false }, true, false},
		{"certificate expires soon", func(spec *Spec, _ *planFixture) { spec.Now = spec.Now.Add(29 * time.Minute) }, false, true},
		{"another CA of the tunnel", func(_ *Spec, f *planFixture) { f.state.Hub.TunnelCA = newAuthority(t).Bundle() }, false, true},
		{"revoked certificate", func(_ *Spec, f *planFixture) {
			f.state.Hub.Secret.Annotations[v1alpha1.AnnotationAgentCertificatesSince] = f.now.Add(time.Hour).Format(time.RFC3339)
		}, false, true},
		{"certificate of an earlier registration", func(_ *Spec, f *planFixture) { f.state.Hub.Secret = nil }, true, true},
		{"no agent any more", func(_ *Spec, f *planFixture) { f.state.Cluster.Pair = nil }, false, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newPlanFixture(t)
			f.registered(t, FormPods, AccessAdmin)
			spec := Spec{Name: "edge", Form: FormPods, Access: AccessAdmin, Now: f.now}
			test.change(&spec, f)
			p, err := NewPlan(spec, f.state)
			if err != nil {
				t.Fatal(err)
			}
			if p.NewToken != test.newToken || p.NewCertificate != test.newCertificate {
				t.Errorf("new token %v, want %v; new certificate %v, want %v", p.NewToken, test.newToken, p.NewCertificate, test.newCertificate)
			}
			if err := p.SetPair(AgentPair{Certificate: []byte("other"), Key: []byte("k"), CA: []byte("ca")}); err != nil {
				t.Fatal(err)
			}
			for _, step := range p.Steps {
				for _, o := range step.Apply {
					if data, _, _ := unstructured.NestedString(o.Object, "data", corev1.TLSCertKey); o.GetKind() == "Secret" && step.Name == StepAgent &&
						data != base64.StdEncoding.EncodeToString([]byte("other")) {
						t.Error("the placeholder was not replaced in the agent's Secret")
					}
				}
			}
		})
	}
}
