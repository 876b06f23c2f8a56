// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/oam-dev/cluster-gateway/test/lab"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

// escalation is a request by which a user with limited access to a cluster tries to get more.
type escalation struct {
	name, method, path, contentType, body string
	header                                http.Header
}

const (
	jsonBody  = "application/json"
	mergeBody = "application/merge-patch+json"
)

func escalations() []escalation {
	const core, ns = "/api/v1", "/api/v1/namespaces/" + agentNamespace
	const rbac = "/apis/rbac.authorization.k8s.io/v1"
	tokenRequest := `{"apiVersion":"authentication.k8s.io/v1","kind":"TokenRequest","spec":{}}`
	pod := func(account string) string {
		return fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"intruder"},"spec":{"serviceAccountName":%q,"containers":[{"name":"x","image":"x"}]}}`, account)
	}
	binding := func(kind, role, account string) string {
		return fmt.Sprintf(`{"apiVersion":"rbac.authorization.k8s.io/v1","kind":%q,"metadata":{"name":"intruder"},"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":%q},"subjects":[{"kind":"ServiceAccount","namespace":%q,"name":%q}]}`,
			kind, role, agentNamespace, account)
	}
	get := func(name, path string) escalation { return escalation{name: name, method: http.MethodGet, path: path} }
	post := func(name, path, body string) escalation {
		return escalation{name: name, method: http.MethodPost, path: path, contentType: jsonBody, body: body}
	}
	patch := func(name, path, body string) escalation {
		return escalation{name: name, method: http.MethodPatch, path: path, contentType: mergeBody, body: body}
	}
	upgrade := get("exec into the agent", ns+"/pods/konnectivity-agent/exec?command=cat&command=/var/run/konnectivity-agent/tls.key&stdout=true")
	upgrade.header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Key": {"dGhlIHNhbXBsZSBub25jZQ=="}, "Sec-Websocket-Version": {"13"}}
	impersonate := get("impersonation of the account for maintenance", ns+"/secrets/konnectivity-agent")
	impersonate.header = http.Header{"Impersonate-User": {"system:serviceaccount:" + agentNamespace + ":cluster-gateway-maintenance"}}
	masters := post("impersonation of system:masters", core+"/namespaces/default/configmaps", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"intruder"}}`)
	masters.header = http.Header{"Impersonate-User": {"any"}, "Impersonate-Group": {"system:masters"}}
	return []escalation{
		post("a token of the account for callers", ns+"/serviceaccounts/cluster-gateway/token", tokenRequest),
		post("a token of the account for maintenance", ns+"/serviceaccounts/cluster-gateway-maintenance/token", tokenRequest),
		post("a token of another account", core+"/namespaces/kube-system/serviceaccounts/default/token", tokenRequest),
		get("the agent's key", ns+"/secrets/konnectivity-agent"),
		get("the Secrets of the agent's namespace", ns+"/secrets"),
		get("all Secrets", core+"/secrets"),
		get("the agent's key, with an escaped path", "/api/v1/namespaces/cluster%2Dgateway%2Dagent/secrets/konnectivity%2Dagent"),
		get("the agent's key, with two slashes", "/api/v1/namespaces//cluster-gateway-agent/secrets/konnectivity-agent"),
		get("the agent's key, with dot segments", "/api/v1/namespaces/default/../cluster-gateway-agent/secrets/konnectivity-agent"),
		get("a watch of Secrets", "/api/v1/watch/namespaces/cluster-gateway-agent/secrets?timeoutSeconds=1"),
		patch("another key for the agent", ns+"/secrets/konnectivity-agent", `{"data":{"tls.key":""}}`),
		patch("another image for the agent", "/apis/apps/v1/namespaces/"+agentNamespace+"/deployments/konnectivity-agent",
			`{"spec":{"template":{"spec":{"serviceAccountName":"cluster-gateway-maintenance"}}}}`),
		post("a Pod with the account for maintenance", ns+"/pods", pod("cluster-gateway-maintenance")),
		post("a Pod elsewhere", core+"/namespaces/default/pods", pod("default")),
		upgrade,
		get("a port of the agent", ns+"/pods/konnectivity-agent:8133/proxy/metrics"),
		post("cluster-admin for the account for callers", rbac+"/clusterrolebindings", binding("ClusterRoleBinding", "cluster-admin", "cluster-gateway")),
		post("admin in the agent's namespace", rbac+"/namespaces/"+agentNamespace+"/rolebindings", binding("RoleBinding", "admin", "cluster-gateway")),
		patch("the rights for maintenance", rbac+"/namespaces/"+agentNamespace+"/rolebindings/cluster-gateway-maintenance",
			`{"subjects":[{"kind":"ServiceAccount","namespace":"`+agentNamespace+`","name":"cluster-gateway"}]}`),
		{name: "the end of the agent", method: http.MethodDelete, path: ns},
		impersonate,
		masters,
	}
}

// TestCallersCannotEscalate lets a user of the hub, who may send anything to a cluster through the
// gateway, try to get more rights there than the cluster was registered with: on both routes,
// through the hub and the gateway's own endpoint, with clusters that have two credentials, and with
// clusters that an earlier version registered with one.
func TestCallersCannotEscalate(t *testing.T) {
	ctx := begin(t)
	started := kubelet(ctx, t)
	const user = "escalating-user"
	grantProxy(ctx, t, user)
	cert, key, err := shared.hub.ClientCertificate(user)
	if err != nil {
		t.Fatal(err)
	}
	for _, access := range []string{"view", "impersonate"} {
		must(ctx, t, edgeArgs("--access", access, "--wait", "1m")...)
		must(ctx, t, nearbyArgs("--access", access, "--wait", "1m")...)
		if access == "view" {
			<-started
		}
		for _, state := range []string{"registered now", "registered by an earlier version"} {
			for name, c := range map[string]*lab.Cluster{"edge-1": shared.edge, "near-1": shared.nearby} {
				if state != "registered now" {
					labtest.ShareCredential(ctx, t, shared.hub, c, hubNamespace, name)
				}
				for _, door := range []lab.Via{lab.ViaHub, lab.ViaOwnEndpoint} {
					t.Run(fmt.Sprintf("%s/%s/%s/%s", access, state, name, door), func(t *testing.T) {
						config := rest.AnonymousClientConfig(shared.gateway.RESTConfig(door))
						config.CertData, config.KeyData = cert, key
						config.NextProtos = []string{"http/1.1"} // HTTP/2 has no upgrades
						client, err := rest.HTTPClientFor(config)
						if err != nil {
							t.Fatal(err)
						}
						prefix := config.Host + "/apis/cluster.core.oam.dev/v1alpha1/clustergateways/" + name + "/proxy"
						labtest.Within(t, labtest.Timeout, "the user to reach the cluster", func() error {
							code, body, err := send(ctx, client, prefix, escalation{method: http.MethodGet, path: "/version"})
							if err == nil && code != http.StatusOK {
								err = fmt.Errorf("%d: %s", code, body)
							}
							return err
						})
						before := dump(ctx, t, c)
						for _, e := range escalations() {
							code, body, err := send(ctx, client, prefix, e)
							switch {
							case err != nil:
								t.Errorf("%s: %v", e.name, err)
							case code < 300 || code == http.StatusSwitchingProtocols || code >= 500:
								t.Errorf("%s: got %d: %.300s", e.name, code, body)
							}
						}
						same(t, "the cluster", before, dump(ctx, t, c))
					})
				}
			}
		}
	}
}

func send(ctx context.Context, client *http.Client, prefix string, e escalation) (code int, body string, err error) {
	req, err := http.NewRequestWithContext(ctx, e.method, prefix+e.path, bytes.NewReader([]byte(e.body)))
	if err != nil {
		return 0, "", err
	}
	for name, values := range e.header {
		req.Header[name] = values
	}
	if e.contentType != "" {
		req.Header.Set("Content-Type", e.contentType)
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return resp.StatusCode, "", nil
	}
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, strings.TrimSpace(string(text)), err
}

// grantProxy lets a user of the hub use all verbs on the proxy of every cluster, until the test
// ends.
func grantProxy(ctx context.Context, t *testing.T, user string) {
	t.Helper()
	rbac := shared.hub.Client().RbacV1()
	meta := metav1.ObjectMeta{Name: user}
	if _, err := rbac.ClusterRoles().Create(ctx, &rbacv1.ClusterRole{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{"cluster.core.oam.dev"}, Resources: []string{"clustergateways/proxy"}, Verbs: []string{"*"}},
	}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := rbac.ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: meta, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: user},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: user}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), caseTimeout)
		defer cancel()
		for _, err := range []error{rbac.ClusterRoleBindings().Delete(ctx, user, metav1.DeleteOptions{}), rbac.ClusterRoles().Delete(ctx, user, metav1.DeleteOptions{})} {
			if err != nil {
				t.Error(err)
			}
		}
	})
}
