// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registration

import (
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// Access is what the gateway may do in a managed cluster for its callers.
type Access struct {
	// Name is the value of --access. Role is the ClusterRole that it stands for.
	Name, Role string
	// Impersonation is that of --identity=impersonate. Nil with AccessImpersonate is the right to act
	// as everybody, in the form of before constrained impersonation.
	Impersonation *Impersonation
}

// The values of --access with a meaning of their own. Any other value is the name of a ClusterRole.
// AccessImpersonate is the access of --identity=impersonate, and a deprecated value.
const (
	AccessAdmin       = v1alpha1.AccessAdmin
	AccessView        = "view"
	AccessImpersonate = "impersonate"
)

// AccessOf returns the access that a value of --access stands for.
func AccessOf(name string) Access {
	switch name {
	case AccessAdmin:
		return Access{Name: name, Role: v1alpha1.ClusterRoleAdmin}
	case AccessImpersonate:
		return Access{Name: name, Role: impersonateRole}
	default: // Kubernetes has a ClusterRole view
		return Access{Name: name, Role: name}
	}
}

// accessOf is AccessOf with an impersonation, which may be nil.
func accessOf(name string, impersonation *Impersonation) Access {
	access := AccessOf(name)
	access.Impersonation = impersonation
	return access
}

// Objects returns the objects that bind the access to the account for callers. The namespace with
// this UID owns them; with an empty UID, they have no owner.
func (a Access) Objects(namespace types.UID) ([]*unstructured.Unstructured, error) {
	var typed []runtime.Object
	if a.Name == AccessImpersonate {
		role := &rbacv1.ClusterRole{
			ObjectMeta: metav1.ObjectMeta{Name: a.Role, Labels: ManagedLabels(nil)},
			Rules: []rbacv1.PolicyRule{
				{APIGroups: []string{""}, Resources: []string{"users", "groups", "serviceaccounts"}, Verbs: []string{"impersonate"}},
			},
		}
		typed = append(typed, role)
		if a.Impersonation != nil {
			role.Rules = a.Impersonation.rules()
			typed = append(typed, a.Impersonation.bindings()...)
		}
	}
	typed = append(typed, &rbacv1.ClusterRoleBinding{
		// The role of a binding cannot be changed: each role has a binding of its own, and earlier
		// ones are removed.
		ObjectMeta: metav1.ObjectMeta{Name: AccessPrefix + "access:" + a.Role, Labels: ManagedLabels(nil)},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: a.Role},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: AgentNamespace, Name: GatewayAccount}},
	})
	var objects []*unstructured.Unstructured
	for _, o := range typed {
		u, err := ToUnstructured(o)
		if err != nil {
			return nil, err
		}
		SetOwner(u, namespace)
		objects = append(objects, u)
	}
	return objects, nil
}
