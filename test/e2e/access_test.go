// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"net/http"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/oam-dev/cluster-gateway/test/lab"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

// TestRBACByClusterName checks that a user who may use one cluster cannot use any other, and can do
// there only what was granted.
func TestRBACByClusterName(t *testing.T) {
	ctx := bounded(t, caseTimeout)
	const user = "e2e-alice"
	grant(ctx, t, user, rbacv1.PolicyRule{
		APIGroups: []string{"cluster.core.oam.dev"}, Resources: []string{"clustergateways/proxy"}, ResourceNames: []string{"direct"}, Verbs: []string{"get"},
	})
	cert, key, err := shared.embeddedHub.ClientCertificate(user)
	if err != nil {
		t.Fatal(err)
	}
	for _, door := range doors() {
		t.Run(string(door), func(t *testing.T) {
			config := anonymous(shared.embedded.RESTConfig(door))
			config.CertData, config.KeyData = cert, key
			toDirect := rest.CopyConfig(config)
			toDirect.Host += gatewayPath + "/direct/proxy"
			labtest.Within(t, labtest.Timeout, "the grant to take effect", func() error {
				return wantCode(ask(ctx, t, toDirect, http.MethodGet, "/version"), http.StatusOK)
			})
			mustContain(t, newKubectl(t, toDirect).run(ctx, t, "get", "nodes"), "node-0")
			for _, refused := range []struct{ method, path string }{
				{http.MethodPost, gatewayPath + "/direct/proxy/api/v1/namespaces/default/configmaps"},
				{http.MethodDelete, gatewayPath + "/direct/proxy/api/v1/namespaces/default/configmaps/none"},
				{http.MethodGet, gatewayPath + "/edge/proxy/version"},
				{http.MethodGet, gatewayPath + "/missing/proxy/version"}, // nor may they list the clusters
				{http.MethodGet, gatewayPath + "/direct"},
				{http.MethodGet, gatewayPath},
			} {
				r := ask(ctx, t, config, refused.method, refused.path)
				if r.code != http.StatusForbidden || !strings.Contains(r.body, user) {
					t.Errorf("%s %s: %+v", refused.method, refused.path, r)
				}
			}
			denied := newKubectl(t, config).try(ctx, t, "", "get", "--raw", gatewayPath+"/edge/proxy/version")
			if denied.code == 0 || !strings.Contains(denied.stderr, "Forbidden") || !strings.Contains(denied.stderr, "edge") {
				t.Error(denied)
			}
		})
	}
}

// TestExecNeedsCreate checks that a user with only the verb get can read, but cannot run a command
// in a Pod: kubectl exec upgrades a GET to a WebSocket. The verb create allows it.
func TestExecNeedsCreate(t *testing.T) {
	ctx := bounded(t, caseTimeout)
	const podName = "needs-create"
	runPod(t, shared.direct, podName)
	for _, user := range []struct {
		name  string
		verbs []string
		may   bool
	}{
		{"e2e-reader", []string{"get"}, false},
		{"e2e-operator", []string{"get", "create"}, true},
	} {
		grant(ctx, t, user.name, rbacv1.PolicyRule{
			APIGroups: []string{"cluster.core.oam.dev"}, Resources: []string{"clustergateways/proxy"}, ResourceNames: []string{"direct"}, Verbs: user.verbs,
		})
		cert, key, err := shared.embeddedHub.ClientCertificate(user.name)
		if err != nil {
			t.Fatal(err)
		}
		for _, door := range doors() {
			t.Run(user.name+" "+string(door), func(t *testing.T) {
				config := anonymous(shared.embedded.RESTConfig(door))
				config.CertData, config.KeyData = cert, key
				config.Host += gatewayPath + "/direct/proxy"
				labtest.Within(t, labtest.Timeout, "the grant to take effect", func() error {
					return wantCode(ask(ctx, t, config, http.MethodGet, "/version"), http.StatusOK)
				})
				k := newKubectl(t, config)
				mustContain(t, k.run(ctx, t, "get", "pod", podName), podName)
				r := k.try(ctx, t, "", "exec", podName, "--", "echo", "inside")
				if user.may {
					if r.code != 0 || !strings.Contains(r.stdout, "inside") {
						t.Error(r)
					}
					return
				}
				if r.code == 0 || strings.Contains(r.stdout, "inside") || !strings.Contains(r.stderr, "orbidden") {
					t.Error(r)
				}
				// kubectl falls back to a POST, which the hub itself refuses. A client without this fallback
				// gets the gateway's response.
				upgrade := rest.CopyConfig(config)
				upgrade.Wrap(func(next http.RoundTripper) http.RoundTripper {
					return roundTripperFunc(func(req *http.Request) (*http.Response, error) {
						req = req.Clone(req.Context())
						req.Header.Set("Connection", "Upgrade")
						req.Header.Set("Upgrade", "websocket")
						return next.RoundTrip(req)
					})
				})
				upgrade.NextProtos = []string{"http/1.1"} // HTTP/2 does not support upgrades
				answer := ask(ctx, t, upgrade, http.MethodGet, "/api/v1/namespaces/default/pods/"+podName+"/exec?command=true&stdout=true")
				if answer.code != http.StatusForbidden {
					t.Errorf("%+v", answer)
				}
				mustContain(t, answer.body, user.name, "exec, attach, port-forward", "create on clustergateways/proxy")
			})
		}
	}
}

// TestWhoSeesTheTunnels checks that RBAC on the hub decides who may read the state of the tunnels.
// A user of all clusters may not, and a user who may cannot use a cluster.
func TestWhoSeesTheTunnels(t *testing.T) {
	ctx := bounded(t, caseTimeout)
	const path = "/debug/tunnels"
	for _, user := range []struct {
		name string
		rule rbacv1.PolicyRule
		may  bool
	}{
		{"e2e-sees-tunnels", rbacv1.PolicyRule{NonResourceURLs: []string{path}, Verbs: []string{"get"}}, true},
		{"e2e-sees-no-tunnels", rbacv1.PolicyRule{APIGroups: []string{"cluster.core.oam.dev"}, Resources: []string{"*"}, Verbs: []string{"*"}}, false},
	} {
		grant(ctx, t, user.name, user.rule)
		cert, key, err := shared.embeddedHub.ClientCertificate(user.name)
		if err != nil {
			t.Fatal(err)
		}
		config := anonymous(shared.embedded.RESTConfig(lab.ViaOwnEndpoint))
		config.CertData, config.KeyData = cert, key
		granted, refused := path, gatewayPath
		if !user.may {
			granted, refused = refused, granted
		}
		labtest.Within(t, labtest.Timeout, "the grant to take effect", func() error {
			return wantCode(ask(ctx, t, config, http.MethodGet, granted), http.StatusOK)
		})
		if r := ask(ctx, t, config, http.MethodGet, refused); r.code != http.StatusForbidden {
			t.Errorf("%s may read %s: %+v", user.name, refused, r)
		}
		if r := ask(ctx, t, config, http.MethodGet, path); user.may && !strings.Contains(r.body, `"cluster": "edge"`) {
			t.Errorf("%+v", r)
		}
	}
	if r := ask(ctx, t, anonymous(shared.embedded.RESTConfig(lab.ViaOwnEndpoint)), http.MethodGet, path); wantCode(r, http.StatusUnauthorized, http.StatusForbidden) != nil {
		t.Errorf("anybody may read %s: %+v", path, r)
	}
}

// grant binds a ClusterRole to a user of the hub until the test ends.
func grant(ctx context.Context, t *testing.T, user string, rules ...rbacv1.PolicyRule) {
	t.Helper()
	grantOn(ctx, t, shared.embeddedHub, user, rules...)
}

// grantOn is grant on one of the hubs.
func grantOn(ctx context.Context, t *testing.T, hub *lab.Cluster, user string, rules ...rbacv1.PolicyRule) {
	t.Helper()
	rbac := hub.Client().RbacV1()
	meta := metav1.ObjectMeta{Name: user}
	if _, err := rbac.ClusterRoles().Create(ctx, &rbacv1.ClusterRole{ObjectMeta: meta, Rules: rules}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := rbac.ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: meta,
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: user},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: user}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), caseTimeout)
		defer cancel()
		if err := rbac.ClusterRoleBindings().Delete(ctx, user, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
		if err := rbac.ClusterRoles().Delete(ctx, user, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
}

// TestOwnEndpointAuthentication checks that the gateway's own endpoint admits only callers that the
// hub would admit.
func TestOwnEndpointAuthentication(t *testing.T) {
	ctx := bounded(t, caseTimeout)
	strangerCA, err := lab.NewCA("stranger")
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := strangerCA.Issue(lab.CertOptions{CN: "lab-admin", Orgs: []string{"system:masters"}})
	if err != nil {
		t.Fatal(err)
	}
	account := token(t, shared.embeddedHub, "e2e-client")
	nameless := anonymous(shared.embedded.RESTConfig(lab.ViaOwnEndpoint))
	for _, c := range []struct {
		name  string
		set   func(*rest.Config)
		codes []int
	}{
		{"no credential", func(*rest.Config) {}, []int{http.StatusUnauthorized, http.StatusForbidden}},
		{"unknown token", func(c *rest.Config) { c.BearerToken = "nonsense" }, []int{http.StatusUnauthorized}},
		{"token of a managed cluster", func(c *rest.Config) { c.BearerToken = string(token(t, shared.direct, "cluster-gateway")) }, []int{http.StatusUnauthorized}},
		{"certificate of another CA", func(c *rest.Config) { c.CertData, c.KeyData = stranger.CertPEM, stranger.KeyPEM }, []int{http.StatusUnauthorized, http.StatusForbidden}},
		{"front-proxy headers without its certificate", func(c *rest.Config) {
			c.Wrap(func(next http.RoundTripper) http.RoundTripper {
				return roundTripperFunc(func(req *http.Request) (*http.Response, error) {
					req = req.Clone(req.Context())
					req.Header.Set("X-Remote-User", "lab-admin")
					req.Header.Set("X-Remote-Group", "system:masters")
					return next.RoundTrip(req)
				})
			})
		}, []int{http.StatusUnauthorized, http.StatusForbidden}},
		{"ServiceAccount token of the hub", func(c *rest.Config) { c.BearerToken = string(account) }, []int{http.StatusOK}},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := rest.CopyConfig(nameless)
			c.set(config)
			for _, path := range []string{gatewayPath + "/direct/proxy/version", gatewayPath} {
				if r := ask(ctx, t, config, http.MethodGet, path); wantCode(r, c.codes...) != nil {
					t.Errorf("%s: %v", path, wantCode(r, c.codes...))
				}
			}
		})
	}
}
