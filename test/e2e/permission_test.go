// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/oam-dev/cluster-gateway/pkg/bootstrap"
	"github.com/oam-dev/cluster-gateway/test/lab"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

// authorizingGateway starts a gateway that authorizes proxied requests and forgets decisions soon.
func authorizingGateway(ctx context.Context, t *testing.T, extra ...string) *lab.Gateway {
	t.Helper()
	g, err := shared.lab.StartGateway(ctx, lab.GatewayOptions{
		Name: "gateway-" + strings.ToLower(t.Name()), Hub: shared.embeddedHub, Binary: shared.binary, Verbosity: shared.verbosity,
		ExtraArgs: append([]string{
			"--proxy-reauthorization-interval=1s", "--authorization-webhook-cache-authorized-ttl=1s", "--authorization-webhook-cache-unauthorized-ttl=1s",
		}, extra...),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Stop() })
	return g
}

// TestRulesByClusterLabel checks rules of the hub for what a caller does in a cluster: by the label
// of the cluster, for Pods and their logs in one namespace, and exec only once there is a rule for
// it. When the rule is removed, the exec that is open ends.
func TestRulesByClusterLabel(t *testing.T) {
	besideOthers(t)
	ctx := bounded(t, caseTimeout)
	const name, developer, podName = "permitted", "e2e-developer", "permitted"
	const staging = "clusters:e2e.example.com/env=staging"
	g := authorizingGateway(ctx, t, "--authorize-proxied-requests")
	register(ctx, t, shared.embeddedHub, lab.SecretOptions{Name: name, Data: map[string][]byte{
		"endpoint": []byte(shared.direct.Endpoint()), "ca.crt": shared.direct.CAPEM(), "token": token(t, shared.direct, "cluster-gateway"),
	}})
	waitKnown(t, g, name)
	if _, err := shared.embeddedHub.Client().CoreV1().Secrets(namespaceOfSecrets).Patch(ctx, name, types.MergePatchType,
		[]byte(`{"metadata":{"labels":{"e2e.example.com/env":"staging"}}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	runPod(t, shared.direct, podName)
	grant(ctx, t, developer, rbacv1.PolicyRule{
		APIGroups: []string{"cluster.core.oam.dev"}, Resources: []string{"clustergateways/proxy"}, ResourceNames: []string{name}, Verbs: []string{"*"},
	})
	grantIn(ctx, t, developer, "e2e-staging-reader", rbacv1.PolicyRule{
		APIGroups: []string{staging}, Resources: []string{"pods", "pods/log"}, Verbs: []string{"get", "list", "watch"},
	})
	config := callerOf(t, g, developer)
	config.Host += gatewayPath + "/" + name + "/proxy"
	k := newKubectl(t, config, "-n", "default")
	labtest.Within(t, labtest.Timeout, "the rules to take effect", func() error {
		return wantCode(ask(ctx, t, config, http.MethodGet, "/api/v1/namespaces/default/pods"), http.StatusOK)
	})

	mustContain(t, k.run(ctx, t, "get", "pods"), podName)
	mustContain(t, k.run(ctx, t, "api-resources"), "deployments")
	k.run(ctx, t, "logs", podName)
	for _, forbidden := range [][]string{
		{"get", "pods", "--all-namespaces"},
		{"get", "pods", "--namespace", "kube-system"},
		{"get", "secrets"},
		{"get", "nodes"},
		{"delete", "pod", podName},
		{"label", "pod", podName, "a=b"},
		{"exec", podName, "--", "echo", "inside"},
		{"get", "--raw", "/metrics"},
		{"create", "token", "default"},
		{"create", "configmap", "e2e-forbidden"},
	} {
		if r := k.try(ctx, t, "", forbidden...); r.code == 0 || strings.Contains(r.stdout, "inside") || !strings.Contains(r.stderr, `user "e2e-developer" cannot `) {
			t.Errorf("%v", r)
		}
	}
	r := k.try(ctx, t, "", "get", "secrets")
	mustContain(t, r.stderr, `user "e2e-developer" cannot list secrets in namespace "default" in cluster "permitted"`, "agent-bootstrap can-i")
	r = k.try(ctx, t, "apiVersion: v1\nkind: Pod\nmetadata: {name: e2e-applied}\n", "apply", "--server-side", "-f", "-")
	if r.code == 0 {
		t.Error(r)
	}

	canI(t, "no", developer, name, "create", "pods/exec", "-n", "default")
	remove := grantIn(ctx, t, developer, "e2e-staging-exec", rbacv1.PolicyRule{
		APIGroups: []string{staging}, Resources: []string{"pods/exec"}, Verbs: []string{"get", "create"},
	})
	canI(t, "yes", developer, name, "create", "pods/exec", "-n", "default")
	labtest.Within(t, labtest.Timeout, "the rule to take effect", func() error {
		if r := k.try(ctx, t, "", "exec", podName, "--", "echo", "inside"); !strings.Contains(r.stdout, "inside") {
			return errors.New(r.String())
		}
		return nil
	})
	shell := k.start(ctx, t, "exec", podName, "--", "sh", "-c", "echo begun; sleep 1000")
	shell.sees(t, "begun", nil)
	watch := k.start(ctx, t, "get", "pods", "--watch")
	watch.sees(t, podName, nil)
	remove()
	labtest.Within(t, labtest.Timeout, "the exec to end", func() error {
		select {
		case <-shell.done:
			return nil
		default:
			return fmt.Errorf("%v", shell)
		}
	})
	select {
	case <-watch.done:
		t.Errorf("the watch, which is still allowed, ended: %v", watch)
	default:
	}
	if n, err := g.Metric(ctx, "cluster_gateway_streams_revoked_total", `cluster="`+name+`"`); err != nil || n != 1 {
		t.Errorf("%v streams were revoked, want 1: %v", n, err)
	}
}

// TestLostDoorEndsExec: without rules for requests, an exec ends, too, when its caller may no
// longer use the cluster.
func TestLostDoorEndsExec(t *testing.T) {
	besideOthers(t)
	ctx := bounded(t, caseTimeout)
	const user, podName = "e2e-leaver", "lost-door"
	g := authorizingGateway(ctx, t)
	runPod(t, shared.direct, podName)
	remove := grantDoor(ctx, t, user)
	config := callerOf(t, g, user)
	config.Host += gatewayPath + "/direct/proxy"
	k := newKubectl(t, config, "-n", "default")
	labtest.Within(t, labtest.Timeout, "the grant to take effect", func() error {
		return wantCode(ask(ctx, t, config, http.MethodGet, "/version"), http.StatusOK)
	})
	shell := k.start(ctx, t, "exec", podName, "--", "sh", "-c", "echo begun; sleep 1000")
	shell.sees(t, "begun", nil)
	remove()
	labtest.Within(t, labtest.Timeout, "the exec to end", func() error {
		select {
		case <-shell.done:
			return nil
		default:
			return fmt.Errorf("%v", shell)
		}
	})
}

// TestAPIAudiences: a token for the gateway is accepted by the gateway and not by the hub. A token
// for the hub is accepted by both, and one for somebody else by neither.
func TestAPIAudiences(t *testing.T) {
	besideOthers(t)
	ctx := bounded(t, caseTimeout)
	g := authorizingGateway(ctx, t, "--api-audiences=e2e-gateway,e2e-another-name")
	token(t, shared.embeddedHub, "e2e-client") // creates the account
	for _, test := range []struct {
		name         string
		audiences    []string
		gateway, hub int
		other        int
	}{
		{"for the gateway", []string{"e2e-gateway"}, http.StatusOK, http.StatusUnauthorized, http.StatusUnauthorized},
		{"for its other name", []string{"e2e-another-name"}, http.StatusOK, http.StatusUnauthorized, http.StatusUnauthorized},
		{"for the hub", nil, http.StatusOK, http.StatusOK, http.StatusOK},
		{"for somebody else", []string{"e2e-somebody"}, http.StatusUnauthorized, http.StatusUnauthorized, http.StatusUnauthorized},
	} {
		t.Run(test.name, func(t *testing.T) {
			issued, err := shared.embeddedHub.Client().CoreV1().ServiceAccounts(namespaceOfSecrets).CreateToken(ctx, "e2e-client",
				&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: test.audiences}}, metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			for _, at := range []struct {
				name   string
				config *rest.Config
				path   string
				code   int
			}{
				{"the gateway", g.RESTConfig(lab.ViaOwnEndpoint), gatewayPath + "/direct/proxy/version", test.gateway},
				{"the hub", shared.embeddedHub.RESTConfig(), "/api/v1/namespaces/default/pods", test.hub},
				{"a gateway without audiences", shared.embedded.RESTConfig(lab.ViaOwnEndpoint), gatewayPath + "/direct/proxy/version", test.other},
			} {
				config := anonymous(at.config)
				config.BearerToken = issued.Status.Token
				r := ask(ctx, t, config, http.MethodGet, at.path)
				if at.code == http.StatusOK && r.code == http.StatusForbidden { // it is known, and may not read Pods
					continue
				}
				if err := wantCode(r, at.code); err != nil {
					t.Errorf("at %s: %v", at.name, err)
				}
			}
		})
	}
}

// callerOf returns a configuration for the gateway's own endpoint with a client certificate.
func callerOf(t *testing.T, g *lab.Gateway, user string) *rest.Config {
	t.Helper()
	cert, key, err := shared.embeddedHub.ClientCertificate(user)
	if err != nil {
		t.Fatal(err)
	}
	config := anonymous(g.RESTConfig(lab.ViaOwnEndpoint))
	config.CertData, config.KeyData = cert, key
	return config
}

// grantIn gives a user rules in the namespace "default" of the hub. The result takes them away.
func grantIn(ctx context.Context, t *testing.T, user, role string, rules ...rbacv1.PolicyRule) (remove func()) {
	t.Helper()
	rbac := shared.embeddedHub.Client().RbacV1()
	meta := metav1.ObjectMeta{Name: role}
	if _, err := rbac.Roles(corev1.NamespaceDefault).Create(ctx, &rbacv1.Role{ObjectMeta: meta, Rules: rules}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := rbac.RoleBindings(corev1.NamespaceDefault).Create(ctx, &rbacv1.RoleBinding{
		ObjectMeta: meta, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: role},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: user}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	remove = func() {
		ctx, cancel := context.WithTimeout(context.Background(), caseTimeout)
		defer cancel()
		_ = rbac.RoleBindings(corev1.NamespaceDefault).Delete(ctx, role, metav1.DeleteOptions{}) // it may be gone
		_ = rbac.Roles(corev1.NamespaceDefault).Delete(ctx, role, metav1.DeleteOptions{})
	}
	t.Cleanup(remove)
	return remove
}

// grantDoor lets a user use the cluster "direct". The result takes the right away.
func grantDoor(ctx context.Context, t *testing.T, user string) (remove func()) {
	t.Helper()
	rbac := shared.embeddedHub.Client().RbacV1()
	meta := metav1.ObjectMeta{Name: user}
	if _, err := rbac.ClusterRoles().Create(ctx, &rbacv1.ClusterRole{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{{
		APIGroups: []string{"cluster.core.oam.dev"}, Resources: []string{"clustergateways/proxy"}, ResourceNames: []string{"direct"}, Verbs: []string{"get", "create"},
	}}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := rbac.ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: meta, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: user},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: user}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	remove = func() {
		ctx, cancel := context.WithTimeout(context.Background(), caseTimeout)
		defer cancel()
		_ = rbac.ClusterRoleBindings().Delete(ctx, user, metav1.DeleteOptions{}) // it may be gone
		_ = rbac.ClusterRoles().Delete(ctx, user, metav1.DeleteOptions{})
	}
	t.Cleanup(remove)
	return remove
}

// canI runs agent-bootstrap can-i, and checks its answer. RBAC takes some time to take effect.
func canI(t *testing.T, want string, args ...string) {
	t.Helper()
	kubeconfig := writeKubeconfig(t, shared.embeddedHub.RESTConfig())
	labtest.Within(t, labtest.Timeout, "can-i to answer "+want, func() error {
		var out bytes.Buffer
		cmd := bootstrap.NewCommand(bootstrap.Config{Out: &out, ErrOut: &out})
		cmd.SetArgs(append([]string{"can-i", "--kubeconfig", kubeconfig}, args...))
		err := cmd.ExecuteContext(t.Context())
		if answer, _, _ := strings.Cut(out.String(), "\n"); answer != want || (err == nil) != (want == "yes") {
			return fmt.Errorf("%s: %w", &out, err)
		}
		return nil
	})
}
