// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build integration

package bootstrap_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/oam-dev/cluster-gateway/pkg/bootstrap"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

// unit is one right in the cluster that is to be registered.
type unit struct{ verb, group, resource string }

func (u unit) String() string { return strings.TrimSpace(u.verb + " " + u.resource) }

func units(verbs, group string, resources ...string) []unit {
	var all []unit
	for _, resource := range resources {
		for verb := range strings.FieldsSeq(verbs) {
			all = append(all, unit{verb, group, resource})
		}
	}
	return all
}

const rbacGroup = rbacv1.GroupName

// directUnits are the rights that register --route direct requires, written by hand. They include
// those that the agent's Role grants.
func directUnits() []unit {
	return slices.Concat(
		units("get create patch", "", "namespaces", "serviceaccounts"),
		units("get create patch delete", rbacGroup, "roles", "rolebindings"),
		units("get create patch list", rbacGroup, "clusterrolebindings"),
		units("get bind", rbacGroup, "clusterroles"),
		units("create", "", "serviceaccounts/token"),
		units("get patch", "", "secrets"),
		units("get patch", "apps", "deployments"),
		units("get", "", "configmaps"),
	)
}

// tunnelUnits are the rights that register --route tunnel requires.
func tunnelUnits() []unit {
	return slices.Concat(directUnits(),
		units("create", "", "secrets"), units("create", "apps", "deployments"),
		units("create patch", "", "configmaps"),
		units("get create patch", "policy", "poddisruptionbudgets"),
		units("get create patch", "networking.k8s.io", "networkpolicies"),
		units("get create patch", "scheduling.k8s.io", "priorityclasses"),
	)
}

// someone creates a user with these rights in the cluster Near, and returns a kubeconfig of that
// user.
func someone(ctx context.Context, t *testing.T, name string, rights []unit) string {
	t.Helper()
	rbac := site.Near.Client().RbacV1()
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}}
	for _, u := range rights {
		role.Rules = append(role.Rules, rbacv1.PolicyRule{Verbs: []string{u.verb}, APIGroups: []string{u.group}, Resources: []string{u.resource}})
	}
	if _, err := rbac.ClusterRoles().Create(ctx, role, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name}, RoleRef: rbacv1.RoleRef{APIGroup: rbacGroup, Kind: "ClusterRole", Name: name},
		Subjects: []rbacv1.Subject{{APIGroup: rbacGroup, Kind: rbacv1.UserKind, Name: name}},
	}
	if _, err := rbac.ClusterRoleBindings().Create(ctx, binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx := context.WithoutCancel(ctx)
		if err := errors.Join(rbac.ClusterRoleBindings().Delete(ctx, name, metav1.DeleteOptions{}), rbac.ClusterRoles().Delete(ctx, name, metav1.DeleteOptions{})); err != nil {
			t.Error(err)
		}
	})
	config, err := clientcmd.LoadFromFile(site.Near.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	for _, user := range config.AuthInfos {
		user.Impersonate = name
	}
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		t.Fatal(err)
	}
	// The API server reads its roles when it hears of them.
	labtest.Within(t, labtest.Timeout, "the API server to know "+name, func() error {
		group, resource := rights[0].group, rights[0].resource
		answer, err := site.Near.Client().AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
			User: name, ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: rights[0].verb, Group: group, Resource: resource},
		}}, metav1.CreateOptions{})
		if err == nil && !answer.Status.Allowed {
			err = errors.New("it does not")
		}
		return err
	})
	return path
}

func without(all []unit, u unit) []unit {
	return slices.DeleteFunc(slices.Clone(all), func(other unit) bool { return other == u })
}

// TestRightsMissing registers as a user who has every required right except one. register reports
// the missing right before it changes anything. With all rights it succeeds.
func TestRightsMissing(t *testing.T) {
	ctx := site.Begin(t)
	tunnel := func(file string, more ...string) []string {
		return append([]string{"register", "near-1", "--cluster-kubeconfig", file, "--access", "view", "--wait", "0"}, more...)
	}
	direct := func(file string, more ...string) []string {
		return tunnel(file, append(more, "--endpoint", site.Near.Endpoint(), "--route", "direct")...)
	}
	type attempt struct {
		lacks unit
		args  []string
	}
	var attempts []attempt
	for i, u := range tunnelUnits() {
		attempts = append(attempts, attempt{u, tunnel(someone(ctx, t, fmt.Sprintf("tunnel-%d", i), without(tunnelUnits(), u)))})
	}
	for i, u := range directUnits() {
		if u.resource == "secrets" || u.resource == "deployments" { // which nobody applies there, and the Role gives
			attempts = append(attempts, attempt{u, direct(someone(ctx, t, fmt.Sprintf("direct-%d", i), without(directUnits(), u)))})
		}
	}
	all := someone(ctx, t, "has-all", tunnelUnits())
	allDirect := someone(ctx, t, "has-all-direct", directUnits())
	exempt := slices.DeleteFunc(directUnits(), func(u unit) bool { return u.resource == "secrets" || u.resource == "deployments" })
	mayEscalate := someone(ctx, t, "may-escalate", append(exempt, units("escalate bind", rbacGroup, "roles")...))

	hub, nearby := labtest.Objects(ctx, t, site.Hub), labtest.Objects(ctx, t, site.Near)
	for _, a := range attempts {
		t.Run(strings.NewReplacer(" ", "-", "/", "-").Replace(fmt.Sprint(a.lacks, a.args[len(a.args)-1])), func(t *testing.T) {
			_, _, err := site.Run(ctx, bootstrap.Config{}, a.args...)
			want := []string{a.lacks.verb, a.lacks.resource}
			if a.lacks.verb == "bind" {
				want = []string{"--access view", "attempting to grant"}
			}
			if err == nil || !strings.Contains(err.Error(), want[0]) || !strings.Contains(err.Error(), want[1]) {
				t.Errorf("it says %v", err)
			}
		})
		// What is there by name is enough: nothing was there before.
		labtest.SameNames(t, "the cluster, without the right to "+a.lacks.String(), nearby, labtest.Objects(ctx, t, site.Near))
	}
	labtest.Same(t, "the hub", hub, labtest.Objects(ctx, t, site.Hub))
	labtest.Same(t, "the cluster", nearby, labtest.Objects(ctx, t, site.Near))

	site.Must(ctx, t, tunnel(all)...)
	hub, nearby = labtest.Objects(ctx, t, site.Hub), labtest.Objects(ctx, t, site.Near)
	_, _, err := site.Run(ctx, bootstrap.Config{}, tunnel(all, "--access", "edit")...)
	if err == nil || !strings.Contains(err.Error(), `delete clusterrolebindings of rbac.authorization.k8s.io "cluster-gateway-agent:access:view"`) {
		t.Errorf("without the right to remove the access of before: %v", err)
	}
	labtest.Same(t, "the hub, with another --access", hub, labtest.Objects(ctx, t, site.Hub))
	labtest.Same(t, "the cluster, with another --access", nearby, labtest.Objects(ctx, t, site.Near))
	_, _, err = site.Run(ctx, bootstrap.Config{}, direct(allDirect)...)
	if err == nil || !strings.Contains(err.Error(), `delete deployments of apps "konnectivity-agent" in namespace cluster-gateway-agent`) {
		t.Errorf("without the right to remove the agent of before: %v", err)
	}
	labtest.Same(t, "the hub, without an agent", hub, labtest.Objects(ctx, t, site.Hub))
	labtest.Same(t, "the cluster, without an agent", nearby, labtest.Objects(ctx, t, site.Near))
	for _, args := range [][]string{direct(allDirect), direct(mayEscalate)} {
		site.Must(ctx, t, "unregister", "near-1", "--cluster-kubeconfig", site.Near.Kubeconfig())
		site.Must(ctx, t, args...)
	}
}
