// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build integration

package bootstrap_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/bootstrap"
	"github.com/oam-dev/cluster-gateway/test/lab"
	"github.com/oam-dev/cluster-gateway/test/lab/bootstraptest"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

// TestRegisterImpersonate registers a cluster that sees its callers, and uses the credential of the
// gateway as the gateway does, and as a thief would.
func TestRegisterImpersonate(t *testing.T) {
	ctx := site.Begin(t)
	bounds := []string{"--impersonate-group", "dev", "--impersonate-group", "ops", "--admin-group", "ops", "--view-group", "dev"}

	out, said := site.Must(ctx, t, site.RegisterNear(append(bounds, "--dry-run", "-o", "yaml")...)...)
	if !strings.Contains(out, "impersonate-on:user-info:get") || !strings.Contains(said, "would be tried") {
		t.Errorf("a dry run says\n%s\n%s", out, said)
	}
	_, said = site.Must(ctx, t, site.RegisterNear(bounds...)...)
	if !strings.Contains(said, "the cluster limits what is done while impersonating") || !strings.Contains(said, "any user and 2 groups") {
		t.Errorf("it says\n%s", said)
	}
	secret := site.HubSecret(ctx, t, "near-1")
	if got := secret.Annotations[v1alpha1.AnnotationIdentity]; got != v1alpha1.IdentityImpersonate {
		t.Errorf("the cluster's identity is %q", got)
	}
	wantNoProbe(ctx, t)

	token := string(secret.Data[v1alpha1.SecretKeyToken])
	for _, request := range []struct {
		name   string
		as     rest.ImpersonationConfig
		do     func(kubernetes.Interface) error
		want   string // in the refusal; empty: none
		locked bool   // it must be refused by the impersonation, and not by the rights of the user
	}{
		{name: "a viewer lists", as: as("jane", "dev"), do: listPods},
		{name: "a viewer writes", as: as("jane", "dev"), do: createMap, want: `User "jane" cannot create`},
		{name: "an administrator writes", as: as("joe", "ops"), do: createMap},
		{name: "with a UID", as: rest.ImpersonationConfig{UserName: "joe", UID: "1", Groups: []string{"ops"}}, do: listPods},
		{name: "nobody", do: listPods, want: "cannot list"},
		{name: "another group", as: as("jane", "others"), do: listPods, want: `"others" is forbidden`, locked: true},
		{name: "an administrator of the system", as: as("jane", "system:masters"), do: listPods, want: "system:masters", locked: true},
		{name: "a Node", as: as("system:node:a", "system:nodes"), do: listPods, want: "system:node:a", locked: true},
		{name: "a ServiceAccount", as: as("system:serviceaccount:kube-system:default"), do: listPods, want: "impersonate-on:serviceaccount", locked: true},
		{name: "the account for maintenance", as: as("system:serviceaccount:cluster-gateway-agent:cluster-gateway-maintenance"), do: listPods, want: "impersonate-on:serviceaccount", locked: true},
		{name: "extra values", as: rest.ImpersonationConfig{UserName: "joe", Groups: []string{"ops"}, Extra: map[string][]string{"example.com/team": {"a"}}}, do: listPods, want: "userextras", locked: true},
	} {
		t.Run(request.name, func(t *testing.T) {
			wantAnswer(t, request.do(clientAs(t, site.Near, token, request.as)), request.want, request.locked)
		})
	}

	t.Run("registered again", func(t *testing.T) {
		before := roleRules(ctx, t)
		site.Must(ctx, t, site.RegisterNear()...)
		if after := roleRules(ctx, t); after != before {
			t.Errorf("the rules were\n%s\nand are\n%s", before, after)
		}
		if got := site.HubSecret(ctx, t, "near-1").Annotations[v1alpha1.AnnotationIdentity]; got != v1alpha1.IdentityImpersonate {
			t.Errorf("the cluster's identity has become %q", got)
		}
		site.Must(ctx, t, site.RegisterNear("--access", "view")...)
		client := clientAs(t, site.Near, string(site.HubSecret(ctx, t, "near-1").Data[v1alpha1.SecretKeyToken]), as("joe", "ops"))
		wantAnswer(t, listPods(client), "", false)
		labtest.Within(t, labtest.Timeout, "the narrower role to take effect", func() error {
			err := createMap(client)
			if !apierrors.IsForbidden(err) {
				return fmt.Errorf("an administrator who may only read writes: %w", err)
			}
			return nil
		})
	})

	t.Run("without constrained impersonation", func(t *testing.T) {
		restart(ctx, t, "--feature-gates=ConstrainedImpersonation=false")
		_, said := site.Must(ctx, t, site.RegisterNear("--access", "admin")...)
		if !strings.Contains(said, "does not limit what is done while impersonating") || !strings.Contains(said, "To limit it, name them with") {
			t.Errorf("it says\n%s", said)
		}
		if rules := roleRules(ctx, t); strings.Contains(rules, "user-info") {
			t.Errorf("the role has both forms, or the wrong one: %s", rules)
		}
		client := clientAs(t, site.Near, string(site.HubSecret(ctx, t, "near-1").Data[v1alpha1.SecretKeyToken]), as("joe", "ops"))
		labtest.Within(t, labtest.Timeout, "the earlier form to take effect", func() error { return createMap(client) })
		wantNoProbe(ctx, t)
		restart(ctx, t)
		site.Must(ctx, t, site.RegisterNear()...)
		if rules := roleRules(ctx, t); !strings.Contains(rules, "user-info") || strings.Contains(rules, "[impersonate]") {
			t.Errorf("after an update of the cluster, the role is %s", rules)
		}
	})

	t.Run("back to the credential", func(t *testing.T) {
		site.Must(ctx, t, site.RegisterNear("--identity", "credential")...)
		roles, err := site.Near.Client().RbacV1().ClusterRoles().List(ctx, metav1.ListOptions{LabelSelector: v1alpha1.LabelManagedBy})
		if err != nil || len(roles.Items) != 0 {
			t.Errorf("roles are left: %v, %v", roles.Items, err)
		}
		secret := site.HubSecret(ctx, t, "near-1")
		if secret.Annotations[v1alpha1.AnnotationIdentity] != v1alpha1.IdentityCredential || secret.Annotations[v1alpha1.AnnotationImpersonation] != "" {
			t.Errorf("the Secret has the annotations %v", secret.Annotations)
		}
		wantAnswer(t, listPods(clientAs(t, site.Near, string(secret.Data[v1alpha1.SecretKeyToken]), rest.ImpersonationConfig{})), "", false)
		_, _, err = site.Run(ctx, bootstrap.Config{}, site.RegisterNear("--admin-group", "ops")...)
		if err == nil || !strings.Contains(err.Error(), `is registered with the identity "credential"`) {
			t.Errorf("a group with rights changes a registered cluster: %v", err)
		}
	})
}

func as(user string, groups ...string) rest.ImpersonationConfig {
	return rest.ImpersonationConfig{UserName: user, Groups: groups}
}

func clientAs(t *testing.T, c *lab.Cluster, token string, impersonate rest.ImpersonationConfig) kubernetes.Interface {
	t.Helper()
	config := rest.AnonymousClientConfig(c.RESTConfig())
	config.BearerToken, config.Impersonate = token, impersonate
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func listPods(client kubernetes.Interface) error {
	_, err := client.CoreV1().Pods("default").List(context.Background(), metav1.ListOptions{})
	return err
}

func createMap(client kubernetes.Interface) error {
	_, err := client.CoreV1().ConfigMaps("default").Create(context.Background(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "impersonated-"}}, metav1.CreateOptions{})
	return err
}

// wantAnswer checks whether a request was refused, and by what.
func wantAnswer(t *testing.T, err error, want string, locked bool) {
	t.Helper()
	var status apierrors.APIStatus
	switch {
	case want == "" && err == nil:
		return
	case want == "" || !apierrors.IsForbidden(err) || !errors.As(err, &status):
		t.Fatalf("got %v, want %q", err, want)
	case !strings.Contains(err.Error(), want) || locked != (strings.Contains(err.Error(), "impersonat")):
		t.Errorf("got %v, want %q (by the impersonation: %t)", err, want, locked)
	}
}

// wantNoProbe checks that nothing is left of the account that tried to impersonate.
func wantNoProbe(ctx context.Context, t *testing.T) {
	t.Helper()
	for name := range labtest.Objects(ctx, t, site.Near) {
		if strings.Contains(name, "probe") {
			t.Errorf("%s is left", name)
		}
	}
	accounts, err := site.Near.Client().CoreV1().ServiceAccounts(bootstraptest.AgentNamespace).List(ctx, metav1.ListOptions{})
	if err != nil || slices.ContainsFunc(accounts.Items, func(a corev1.ServiceAccount) bool { return strings.Contains(a.Name, "probe") }) {
		t.Errorf("the account of the probe is left: %v, %v", accounts.Items, err)
	}
}

// roleRules returns the rules of the gateway's role in the cluster, as text.
func roleRules(ctx context.Context, t *testing.T) string {
	t.Helper()
	role, err := site.Near.Client().RbacV1().ClusterRoles().Get(ctx, "cluster-gateway-agent:impersonate", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, rule := range role.Rules {
		lines = append(lines, fmt.Sprint(rule.Verbs, rule.APIGroups, rule.Resources, rule.ResourceNames, rule.NonResourceURLs))
	}
	return strings.Join(lines, "\n")
}

// restart restarts the API server of the cluster with more arguments.
func restart(ctx context.Context, t *testing.T, extra ...string) {
	t.Helper()
	if err := errors.Join(site.Near.StopAPIServer(), site.Near.StartAPIServer(ctx, extra...)); err != nil {
		t.Fatal(err)
	}
}
