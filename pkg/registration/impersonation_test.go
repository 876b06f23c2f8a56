// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registration

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// TestWithIdentity shows what a registration keeps of an earlier one.
func TestWithIdentity(t *testing.T) {
	t.Parallel()
	impersonated := map[string]string{
		v1alpha1.AnnotationIdentity: v1alpha1.IdentityImpersonate, v1alpha1.AnnotationAccess: AccessImpersonate,
		v1alpha1.AnnotationImpersonation: `{"users":["jane"],"groups":["dev"],"readOnly":true,"unconstrained":true,"viewGroups":["dev"]}`,
	}
	for _, test := range []struct {
		name     string
		earlier  map[string]string
		spec     Spec
		identity string
		access   string
		want     *Impersonation
	}{
		{"new", nil, Spec{}, "", AccessAdmin, nil},
		{"a role", nil, Spec{Access: "edit"}, "", "edit", nil},
		{"as before there was an identity", nil, Spec{Access: AccessImpersonate}, "", AccessImpersonate, nil},
		{"both", nil, Spec{Access: AccessImpersonate, Identity: v1alpha1.IdentityImpersonate}, v1alpha1.IdentityImpersonate, AccessImpersonate, &Impersonation{}},
		{"only reading", nil, Spec{Access: AccessView, Identity: v1alpha1.IdentityImpersonate}, v1alpha1.IdentityImpersonate, AccessImpersonate, &Impersonation{ReadOnly: true}},
		{"groups with rights", nil, Spec{Impersonation: &Impersonation{AdminGroups: []string{"ops"}}}, v1alpha1.IdentityImpersonate, AccessImpersonate,
			&Impersonation{AdminGroups: []string{"ops"}}},
		{"a credential stays", map[string]string{v1alpha1.AnnotationIdentity: v1alpha1.IdentityCredential}, Spec{}, "", AccessAdmin, nil},
		{"everything is kept, but what is found out again", impersonated, Spec{}, v1alpha1.IdentityImpersonate, AccessImpersonate,
			&Impersonation{Users: []string{"jane"}, Groups: []string{"dev"}, ReadOnly: true, Unconstrained: true, ViewGroups: []string{"dev"}}},
		{"one list is replaced, one is emptied", impersonated, Spec{Access: AccessAdmin, Impersonation: &Impersonation{Users: []string{}, Groups: []string{"dev", "ops"}}},
			v1alpha1.IdentityImpersonate, AccessImpersonate, &Impersonation{Users: []string{}, Groups: []string{"dev", "ops"}, ViewGroups: []string{"dev"}}},
		{"back", impersonated, Spec{Identity: v1alpha1.IdentityCredential}, v1alpha1.IdentityCredential, AccessAdmin, nil},
		{"rules stay", map[string]string{v1alpha1.AnnotationIdentity: v1alpha1.IdentityRules}, Spec{Access: AccessView}, "", AccessView, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var secret *corev1.Secret
			if test.earlier != nil {
				secret = &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Annotations: test.earlier}}
			}
			got, err := test.spec.WithIdentity(secret)
			if err != nil {
				t.Fatal(err)
			}
			if got.Identity != test.identity || got.Access != test.access || !reflect.DeepEqual(got.Impersonation, test.want) {
				t.Errorf("got %q, %q, %+v, want %q, %q, %+v", got.Identity, got.Access, got.Impersonation, test.identity, test.access, test.want)
			}
		})
	}
	// Groups with rights change no existing cluster, and nothing that is asked for.
	groups := &Impersonation{ViewGroups: []string{"dev"}}
	for _, test := range []struct {
		name string
		spec Spec
		// earlier is the identity of the registered cluster; "none" if it is not registered.
		earlier, want string
	}{
		{"--identity=credential", Spec{Identity: v1alpha1.IdentityCredential, Impersonation: groups}, "none", "with --identity=credential, the cluster does not see its callers"},
		{"registered", Spec{Impersonation: groups}, v1alpha1.IdentityCredential, `is registered with the identity "credential"`},
		{"registered by an earlier version", Spec{Impersonation: groups}, "", `is registered with the identity "credential"`},
		{"registered with rules", Spec{Impersonation: groups}, v1alpha1.IdentityRules, `is registered with the identity "rules"`},
		{"no rights", Spec{Impersonation: &Impersonation{Groups: []string{"dev"}, AdminGroups: []string{}}}, "none", "only if --admin-group or --view-group gives rights"},
	} {
		var secret *corev1.Secret
		if test.earlier != "none" {
			secret = &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{v1alpha1.AnnotationIdentity: test.earlier}}}
		}
		if _, err := test.spec.WithIdentity(secret); err == nil || !strings.Contains(err.Error(), "require --identity=impersonate: ") || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
	}
	if _, err := (Spec{}).WithIdentity(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{
		v1alpha1.AnnotationIdentity: v1alpha1.IdentityImpersonate, v1alpha1.AnnotationImpersonation: "{",
	}}}); err == nil || !strings.Contains(err.Error(), v1alpha1.AnnotationImpersonation) {
		t.Errorf("an annotation that cannot be read: %v", err)
	}
}

// TestImpersonationHasOneForm checks that no role has both forms of the right to impersonate, and
// that no rule has a wildcard among its verbs: either would lift the limits.
func TestImpersonationHasOneForm(t *testing.T) {
	t.Parallel()
	for _, i := range []Impersonation{{}, {ReadOnly: true}, {Unconstrained: true}, {Unconstrained: true, ReadOnly: true}, {Users: []string{"a"}, ExtraKeys: []string{"k"}}} {
		var verbs []string
		for _, rule := range i.rules() {
			verbs = append(verbs, rule.Verbs...)
		}
		if slices.Contains(verbs, "*") {
			t.Errorf("%+v has a wildcard: %v", i, verbs)
		}
		earlier, constrained := slices.Contains(verbs, "impersonate"), slices.ContainsFunc(verbs, func(v string) bool { return v != "impersonate" })
		if earlier != i.Unconstrained || constrained == i.Unconstrained {
			t.Errorf("%+v has the verbs %v", i, verbs)
		}
		if i.ReadOnly && !i.Unconstrained && slices.ContainsFunc(verbs, func(v string) bool { return strings.HasSuffix(v, ":create") || strings.HasSuffix(v, ":post") }) {
			t.Errorf("%+v may write: %v", i, verbs)
		}
	}
}

// TestImpersonationValidate checks that each value that cannot be used is named.
func TestImpersonationValidate(t *testing.T) {
	t.Parallel()
	err := Impersonation{
		Users: []string{"*", "jane", "jane"}, Groups: []string{"system:masters", " ops"}, ExtraKeys: []string{"Example.com/A"}, AdminGroups: []string{"root"},
	}.Validate()
	for _, want := range []string{`--impersonate-user "*"`, `--impersonate-user "jane": it is there twice`, `--impersonate-group "system:masters"`,
		`--impersonate-group " ops"`, `--impersonate-extra "Example.com/A"`, `"root" gets rights, but`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in %v", want, err)
		}
	}
	if err := (Impersonation{Users: []string{"jane@example.com", "hub:hub:shop:deployer"}, Groups: []string{"CN=ops,OU=x"}, AdminGroups: []string{"CN=ops,OU=x"}}).Validate(); err != nil {
		t.Error(err)
	}
}
