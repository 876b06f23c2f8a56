// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package labtest

import (
	"context"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/oam-dev/cluster-gateway/test/lab"
)

// ShareCredential makes a registration what versions before v0.1.0 left: the gateway has one
// account in the cluster, for callers, which has the rights for maintenance as well. namespace is
// the one of the cluster's Secret on the hub. It may be called again.
func ShareCredential(ctx context.Context, t *testing.T, hub, cluster *lab.Cluster, namespace, name string) {
	t.Helper()
	// The hub first: from then on the gateway does not use the account for maintenance.
	if _, err := hub.Client().CoreV1().Secrets(namespace).Patch(ctx, name, types.MergePatchType, []byte(`{"data":{"maintenance-token":null}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	ShareAccount(ctx, t, cluster)
}

// ShareAccount gives the rights of the account for maintenance to the account for callers, and
// deletes the former. It may be called again.
func ShareAccount(ctx context.Context, t *testing.T, cluster *lab.Cluster) {
	t.Helper()
	const ns, callers, maintenance = "cluster-gateway-agent", "cluster-gateway", "cluster-gateway-maintenance"
	rbac := cluster.Client().RbacV1()
	meta := metav1.ObjectMeta{Name: callers, Namespace: ns, Labels: map[string]string{"app.kubernetes.io/managed-by": "agent-bootstrap"}}
	role := &rbacv1.Role{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"serviceaccounts/token"}, ResourceNames: []string{callers}, Verbs: []string{"create"}},
		{APIGroups: []string{""}, Resources: []string{"secrets"}, ResourceNames: []string{"konnectivity-agent"}, Verbs: []string{"get", "patch"}},
		{APIGroups: []string{"apps"}, Resources: []string{"deployments"}, ResourceNames: []string{"konnectivity-agent"}, Verbs: []string{"get", "patch"}},
	}}
	binding := &rbacv1.RoleBinding{
		ObjectMeta: meta, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: callers},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: ns, Name: callers}},
	}
	if _, err := rbac.Roles(ns).Create(ctx, role, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	if _, err := rbac.RoleBindings(ns).Create(ctx, binding, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	for _, err := range []error{
		rbac.RoleBindings(ns).Delete(ctx, maintenance, metav1.DeleteOptions{}), rbac.Roles(ns).Delete(ctx, maintenance, metav1.DeleteOptions{}),
		cluster.Client().CoreV1().ServiceAccounts(ns).Delete(ctx, maintenance, metav1.DeleteOptions{}),
	} {
		if err != nil && !apierrors.IsNotFound(err) {
			t.Fatal(err)
		}
	}
}
