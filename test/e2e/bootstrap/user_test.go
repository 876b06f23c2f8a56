// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/oam-dev/cluster-gateway/pkg/bootstrap"
)

// TestUser checks what a user sees who may use one cluster, with the role in README.md, and has no
// other permissions on the hub; and what a user sees who may also list clusters.
func TestUser(t *testing.T) {
	ctx := begin(t)
	must(ctx, t, nearbyArgs()...)
	use := []rbacv1.PolicyRule{{
		APIGroups: []string{"cluster.core.oam.dev"}, Resources: []string{"clustergateways/proxy"}, ResourceNames: []string{"near-1"},
		Verbs: []string{"get", "create", "update", "patch", "delete"},
	}}
	look := rbacv1.PolicyRule{APIGroups: []string{"cluster.core.oam.dev"}, Resources: []string{"clustergateways"}, Verbs: []string{"get", "list"}}
	user := hubUser(ctx, t, "user", use)
	viewer := hubUser(ctx, t, "viewer", append(use, look))

	path := filepath.Join(t.TempDir(), "near-1.kubeconfig")
	must(ctx, t, "kubeconfig", "near-1", "--kubeconfig", user, "-o", path)
	kubectl(ctx, t, path, "get", "namespaces")

	_, _, err := invoke(ctx, bootstrap.Config{}, "list", "--kubeconfig", user)
	if err == nil || !strings.Contains(err.Error(), `cannot list resource "clustergateways"`) {
		t.Errorf("list: %v; want an error that names the missing permission", err)
	}
	out, said := must(ctx, t, "status", "near-1", "--kubeconfig", user)
	if !strings.Contains(out, "yes, v1.") || !strings.Contains(said, `cannot get resource "clustergateways"`) {
		t.Errorf("status printed\n%s%s", out, said)
	}
	for _, args := range [][]string{{"status", "near-1", "-o", "yaml"}, {"status", "near-2"}} {
		if _, _, err := invoke(ctx, bootstrap.Config{}, append(args, "--kubeconfig", user)...); err == nil || !strings.Contains(err.Error(), `cannot get resource "clustergateways"`) {
			t.Errorf("%v: %v", args, err)
		}
	}
	states := doctorStates(ctx, t, "near-1", user)
	for stage, want := range map[bootstrap.Stage]bootstrap.State{
		bootstrap.StageHub: bootstrap.OK, bootstrap.StageSecret: bootstrap.Unknown, bootstrap.StageDial: bootstrap.OK, bootstrap.StageTLS: bootstrap.OK,
		bootstrap.StageCredential: bootstrap.OK, bootstrap.StageRBAC: bootstrap.OK,
	} {
		if states[stage].State != want {
			t.Errorf("doctor reports %q as %+v; want %s", stage, states[stage], want)
		}
	}
	if !strings.Contains(states[bootstrap.StageSecret].Message, `cannot get resource "clustergateways"`) {
		t.Errorf("doctor does not report what it may not check: %+v", states[bootstrap.StageSecret])
	}
	if hub := doctorStates(ctx, t, "near-2", user)[bootstrap.StageHub]; hub.State != bootstrap.Broken || !strings.Contains(hub.Message, "may not use this cluster") {
		t.Errorf("doctor reports for a cluster of another user: %+v", hub)
	}

	if out, _ := must(ctx, t, "list", "--kubeconfig", viewer); !strings.Contains(out, "near-1") {
		t.Errorf("list printed\n%s", out)
	}
	if out, _ := must(ctx, t, "status", "near-1", "--kubeconfig", viewer); !strings.Contains(out, "direct") || !strings.Contains(out, "yes, v1.") {
		t.Errorf("status printed\n%s", out)
	}
	must(ctx, t, "doctor", "near-1", "--kubeconfig", viewer)
}

// hubUser returns the kubeconfig of an account on the hub with these permissions.
func hubUser(ctx context.Context, t *testing.T, name string, rules []rbacv1.PolicyRule) string {
	t.Helper()
	roles := shared.hub.Client().RbacV1().ClusterRoles()
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "test:" + name}, Rules: slices.Clone(rules)}
	if _, err := roles.Create(ctx, role, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := roles.Delete(context.Background(), role.Name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	token, err := shared.hub.ServiceAccountToken(ctx, "default", name, role.Name)
	if err != nil {
		t.Fatal(err)
	}
	return kubeconfig(t, shared.hub.Endpoint(), shared.hub.CAPEM(), &clientcmdapi.AuthInfo{Token: token})
}

func doctorStates(ctx context.Context, t *testing.T, name, hub string) map[bootstrap.Stage]bootstrap.Finding {
	t.Helper()
	out, said, err := invoke(ctx, bootstrap.Config{}, "doctor", name, "--kubeconfig", hub, "-o", "json")
	var d bootstrap.Diagnosis
	if jsonErr := json.Unmarshal([]byte(out), &d); jsonErr != nil {
		t.Fatalf("doctor: %v, %v\n%s%s", err, jsonErr, said, out)
	}
	if (err != nil) != (d.Broken != "") {
		t.Errorf("doctor reports that %q is broken, and fails with %v", d.Broken, err)
	}
	found := map[bootstrap.Stage]bootstrap.Finding{}
	for _, f := range d.Findings {
		found[f.Stage] = f
	}
	return found
}
