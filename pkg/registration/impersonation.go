// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registration

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// Impersonation is what the account for callers may do in a cluster that sees the callers
// themselves (--identity=impersonate), and what the callers may do there. The zero value lets the
// gateway act as everybody, for every request, and gives no caller any right.
type Impersonation struct {
	// Users and Groups are whom the gateway may act as, by exact name: RBAC has no prefixes. Empty
	// means all of them, except for those that the cluster never allows.
	Users  []string `json:"users,omitempty"`
	Groups []string `json:"groups,omitempty"`
	// ExtraKeys are the keys of extra values that the gateway may pass on. Empty means none.
	ExtraKeys []string `json:"extraKeys,omitempty"`
	// ReadOnly lets the gateway only read while it acts as somebody. It has no effect if
	// Unconstrained.
	ReadOnly bool `json:"readOnly,omitempty"`
	// Unconstrained is for a cluster that cannot bound what is done while impersonating: before
	// Kubernetes 1.36, or without the feature gate ConstrainedImpersonation (KEP-5284).
	Unconstrained bool `json:"unconstrained,omitempty"`
	// AdminGroups and ViewGroups are groups of callers to which the ClusterRoles cluster-admin and
	// view are bound, so that a first login is useful.
	AdminGroups []string `json:"adminGroups,omitempty"`
	ViewGroups  []string `json:"viewGroups,omitempty"`
}

// Names of the objects of an impersonation.
const (
	impersonateRole = AccessPrefix + "impersonate"
	adminGroups     = AccessPrefix + "admin-groups"
	viewGroups      = AccessPrefix + "view-groups"
	// ProbeAccount is a ServiceAccount that exists only while a registration finds out whether the
	// cluster has constrained impersonation. ProbeUser is whom it tries to act as.
	ProbeAccount = "cluster-gateway-probe"
	ProbeUser    = AccessPrefix + "probe"
	probeRole    = AccessPrefix + "probe"
)

const authenticationGroup = "authentication.k8s.io"

// The verbs of constrained impersonation. "user-info" is its mode for ordinary users: it refuses
// system:masters, Nodes and ServiceAccounts whatever a role says.
const (
	impersonateUser = "impersonate:user-info"
	impersonateOn   = "impersonate-on:user-info:"
)

// What RBAC calls requests. A wildcard would include the verb impersonate itself.
var (
	readVerbs      = []string{"get", "list", "watch"}
	writeVerbs     = []string{"create", "update", "patch", "delete", "deletecollection"}
	readPathVerbs  = []string{"get", "head", "options"}
	writePathVerbs = []string{"post", "put", "patch", "delete"}
)

// ParseImpersonation reads the annotation of a Secret. An empty text is the zero value.
func ParseImpersonation(text string) (Impersonation, error) {
	var i Impersonation
	if text == "" {
		return i, nil
	}
	if err := json.Unmarshal([]byte(text), &i); err != nil {
		return Impersonation{}, fmt.Errorf("the annotation %s cannot be read: %w", v1alpha1.AnnotationImpersonation, err)
	}
	return i, nil
}

// Given is whether any of the lists is set, be it to nothing, or Unconstrained is.
func (i Impersonation) Given() bool {
	return i.Users != nil || i.Groups != nil || i.ExtraKeys != nil || i.AdminGroups != nil || i.ViewGroups != nil || i.Unconstrained
}

// givesRights is whether a group of callers gets rights in the cluster. A nil Impersonation gives
// none.
func (i *Impersonation) givesRights() bool {
	return i != nil && len(i.AdminGroups)+len(i.ViewGroups) > 0
}

// text is the value of the annotation.
func (i Impersonation) text() string {
	data, err := json.Marshal(i)
	if err != nil { // cannot fail: only strings and booleans
		return "{}"
	}
	return string(data)
}

// Validate returns an error that names each value that cannot be used.
func (i Impersonation) Validate() error {
	var errs []error
	for _, list := range []struct {
		flag   string
		values []string
	}{
		{"--impersonate-user", i.Users}, {"--impersonate-group", i.Groups}, {"--impersonate-extra", i.ExtraKeys},
		{"--admin-group", i.AdminGroups}, {"--view-group", i.ViewGroups},
	} {
		for n, value := range list.values {
			switch {
			case strings.TrimSpace(value) != value || value == "":
				errs = append(errs, fmt.Errorf("invalid %s %q: must not be empty, or begin or end with white space", list.flag, value))
			case value == "*":
				errs = append(errs, fmt.Errorf(`invalid %s "*": RBAC takes exact names. Leave out the flag to allow all of them`, list.flag))
			case strings.HasPrefix(value, "system:"):
				errs = append(errs, fmt.Errorf("invalid %s %q: the gateway does not act as users and groups whose names begin with system", list.flag, value))
			case slices.Contains(list.values[:n], value):
				errs = append(errs, fmt.Errorf("invalid %s %q: it is there twice", list.flag, value))
			case list.flag == "--impersonate-extra" && strings.ToLower(value) != value:
				errs = append(errs, fmt.Errorf("invalid %s %q: must be in lower case", list.flag, value))
			}
		}
	}
	if len(i.Groups) > 0 {
		for _, group := range slices.Concat(i.AdminGroups, i.ViewGroups) {
			if !slices.Contains(i.Groups, group) {
				errs = append(errs, fmt.Errorf("the group %q gets rights, but is not one that the gateway may act as: add --impersonate-group %q", group, group))
			}
		}
	}
	return errors.Join(errs...)
}

// Describe says in a few words what the gateway may do.
func (i Impersonation) Describe() string {
	whom := "any user and group"
	if len(i.Users)+len(i.Groups) > 0 {
		whom = countOf(i.Users, "user") + " and " + countOf(i.Groups, "group")
	}
	switch {
	case i.Unconstrained:
		return "act as " + whom + ", for every request"
	case i.ReadOnly:
		return "act as " + whom + ", only to read"
	default:
		return "act as " + whom + ", but never as an administrator or account of the system"
	}
}

func countOf(names []string, what string) string {
	switch len(names) {
	case 0:
		return "any " + what
	case 1:
		return "1 " + what
	default:
		return fmt.Sprintf("%d %ss", len(names), what)
	}
}

// rules returns the rules of the ClusterRole. It contains one of the two forms, never both: whoever
// has both is bounded by neither, because the API server tries one after the other.
func (i Impersonation) rules() []rbacv1.PolicyRule {
	// The extra values of a user are resources: userextras/KEY.
	var extras []string
	for _, key := range i.ExtraKeys {
		extras = append(extras, "userextras/"+key)
	}
	verb, group := impersonateUser, authenticationGroup
	if i.Unconstrained {
		verb, group = "impersonate", ""
	}
	rules := []rbacv1.PolicyRule{
		{APIGroups: []string{group}, Resources: []string{"users"}, ResourceNames: i.Users, Verbs: []string{verb}},
		{APIGroups: []string{group}, Resources: []string{"groups"}, ResourceNames: i.Groups, Verbs: []string{verb}},
		{APIGroups: []string{authenticationGroup}, Resources: append([]string{"uids"}, extras...), Verbs: []string{verb}},
	}
	if i.Unconstrained {
		return rules
	}
	verbs, pathVerbs := readVerbs, readPathVerbs
	if !i.ReadOnly {
		verbs, pathVerbs = slices.Concat(readVerbs, writeVerbs), slices.Concat(readPathVerbs, writePathVerbs)
	}
	return append(rules,
		rbacv1.PolicyRule{APIGroups: []string{"*"}, Resources: []string{"*"}, Verbs: prefixed(impersonateOn, verbs)},
		rbacv1.PolicyRule{NonResourceURLs: []string{"*"}, Verbs: prefixed(impersonateOn, pathVerbs)})
}

func prefixed(prefix string, verbs []string) []string {
	all := make([]string, 0, len(verbs))
	for _, verb := range verbs {
		all = append(all, prefix+verb)
	}
	return all
}

// bindings returns the bindings of the groups of callers.
func (i Impersonation) bindings() []runtime.Object {
	var bindings []runtime.Object
	for _, b := range []struct {
		name, role string
		groups     []string
	}{{adminGroups, v1alpha1.ClusterRoleAdmin, i.AdminGroups}, {viewGroups, AccessView, i.ViewGroups}} {
		if len(b.groups) == 0 {
			continue
		}
		binding := &rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: b.name, Labels: ManagedLabels(nil)},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: b.role},
		}
		for _, group := range b.groups {
			binding.Subjects = append(binding.Subjects, rbacv1.Subject{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: group})
		}
		bindings = append(bindings, binding)
	}
	return bindings
}

// ProbeObjects returns an account that may act as [ProbeUser] to ask who it is and to read
// /version, and nothing else, in the form of constrained impersonation. A cluster without it does
// not know these verbs.
func ProbeObjects() ([]*unstructured.Unstructured, error) {
	meta := metav1.ObjectMeta{Name: probeRole, Labels: ManagedLabels(nil)}
	var objects []*unstructured.Unstructured
	for _, typed := range []runtime.Object{
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: ProbeAccount, Namespace: AgentNamespace, Labels: ManagedLabels(nil)}},
		&rbacv1.ClusterRole{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{authenticationGroup}, Resources: []string{"users"}, ResourceNames: []string{ProbeUser}, Verbs: []string{impersonateUser}},
			{APIGroups: []string{authenticationGroup}, Resources: []string{"selfsubjectreviews"}, Verbs: []string{impersonateOn + "create"}},
			{NonResourceURLs: []string{"/version"}, Verbs: []string{impersonateOn + "get"}},
		}},
		&rbacv1.ClusterRoleBinding{
			ObjectMeta: meta,
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: probeRole},
			Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: AgentNamespace, Name: ProbeAccount}},
		},
	} {
		o, err := ToUnstructured(typed)
		if err != nil {
			return nil, err
		}
		objects = append(objects, o)
	}
	return objects, nil
}

// whyNotImpersonate returns why the cluster, which may have a Secret, does not see its callers.
func (s Spec) whyNotImpersonate(secret *corev1.Secret, identity string) string {
	switch {
	case s.Identity != "":
		return fmt.Sprintf("with --identity=%s, the cluster does not see its callers", s.Identity)
	case secret != nil:
		return fmt.Sprintf("the cluster is registered with the identity %q, which only --identity changes", cmp.Or(identity, v1alpha1.IdentityCredential))
	default:
		return "without it, a new cluster sees its callers only if --admin-group or --view-group gives rights to some of them"
	}
}

// WithIdentity completes a spec with what an earlier registration has recorded in the cluster's
// Secret, which is nil for a new cluster: what no flag sets stays as it is. A new cluster sees its
// callers if a group of them gets rights. In the result, Access is the access of the account for
// callers.
func (s Spec) WithIdentity(secret *corev1.Secret) (Spec, error) {
	earlier := map[string]string{}
	if secret != nil {
		earlier = secret.Annotations
	}
	identity := cmp.Or(s.Identity, earlier[v1alpha1.AnnotationIdentity])
	if identity == "" && secret == nil && s.Impersonation.givesRights() {
		identity = v1alpha1.IdentityImpersonate
	}
	if identity != v1alpha1.IdentityImpersonate {
		if s.Impersonation != nil {
			return s, fmt.Errorf("--impersonate-user, --impersonate-group, --impersonate-extra, --admin-group and --view-group require --identity=impersonate: %s", s.whyNotImpersonate(secret, identity))
		}
		s.Access = cmp.Or(s.Access, AccessAdmin)
		return s, nil
	}
	i, err := ParseImpersonation(earlier[v1alpha1.AnnotationImpersonation])
	if err != nil {
		return s, err
	}
	if given := s.Impersonation; given != nil {
		for _, list := range []struct{ to, from *[]string }{
			{&i.Users, &given.Users}, {&i.Groups, &given.Groups}, {&i.ExtraKeys, &given.ExtraKeys},
			{&i.AdminGroups, &given.AdminGroups}, {&i.ViewGroups, &given.ViewGroups},
		} {
			if *list.from != nil {
				*list.to = *list.from
			}
		}
		i.Unconstrained = given.Unconstrained
	}
	switch s.Access {
	case "", AccessImpersonate: // as it was
	case AccessAdmin, AccessView:
		i.ReadOnly = s.Access == AccessView
	default:
		return s, fmt.Errorf("invalid --access %q: with --identity=impersonate it must be admin or view, because the cluster's own roles say what callers may do", s.Access)
	}
	s.Identity, s.Access, s.Impersonation = v1alpha1.IdentityImpersonate, AccessImpersonate, &i
	return s, i.Validate()
}
