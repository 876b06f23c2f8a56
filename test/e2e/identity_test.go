// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/oam-dev/cluster-gateway/test/lab"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

const (
	// impersonator is the gateway's account in the cluster of TestClusterSeesTheCaller.
	impersonator     = "e2e-impersonator"
	impersonatorUser = "system:serviceaccount:" + namespaceOfSecrets + ":" + impersonator
	seenUser         = "e2e-seen"
	seenGroup        = "e2e-seen-group"
	// ruledUser and ruledGroup are who the cluster sees by a rule.
	ruledUser  = "e2e-ruled"
	ruledGroup = "e2e-ruled-group"
)

// seenModes are the annotations of a cluster's Secret for each mode of identity, and who the
// cluster then sees instead of the account of the gateway.
func seenModes() map[string]seenMode {
	return map[string]seenMode{
		"credential":  {annotations: map[string]string{"cluster.core.oam.dev/identity": "credential"}},
		"impersonate": {annotations: map[string]string{"cluster.core.oam.dev/identity": "impersonate"}, user: seenUser, group: seenGroup},
		"rules": {annotations: map[string]string{"cluster.core.oam.dev/identity": "rules", "cluster.core.oam.dev/cluster-gateway-proxy-configuration": `
apiVersion: cluster.core.oam.dev/v1alpha1
kind: ClusterGatewayProxyConfiguration
spec:
  clientIdentityExchanger:
    rules:
    - name: e2e
      type: StaticMappingIdentityExchanger
      source: {user: ` + seenUser + `}
      target: {user: ` + ruledUser + `, groups: [` + ruledGroup + `]}
`}, user: ruledUser, group: ruledGroup},
	}
}

type seenMode struct {
	annotations map[string]string
	// user is empty if the cluster sees the account itself.
	user, group string
}

// sees returns the name of the user that the cluster sees.
func (m seenMode) sees() string { return cmp.Or(m.user, impersonatorUser) }

// check returns what is wrong with an audit event of the cluster.
func (m seenMode) check(event *auditv1.Event) error {
	as := event.ImpersonatedUser
	switch {
	case event.User.Username != impersonatorUser:
	case m.user == "" && as == nil:
		return nil
	case m.user != "" && as != nil && as.Username == m.user && slices.Contains(as.Groups, m.group) && !slices.Contains(as.Groups, "system:masters"):
		return nil
	}
	return fmt.Errorf("the cluster saw %+v as %+v", event.User, as)
}

// seenCluster starts a cluster in which the gateway can only impersonate seenUser and seenGroup,
// and only read and exec as them (constrained impersonation, KEP-5284). It returns the token of
// that account.
func seenCluster(ctx context.Context, t *testing.T) (*lab.Cluster, string) {
	t.Helper()
	c, err := shared.lab.StartCluster(ctx, lab.ClusterOptions{Name: "seen", NoControllerManager: true, NoKwok: true, AuditUsers: []string{impersonatorUser}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Stop() })
	const authentication, userInfo = "authentication.k8s.io", "impersonate:user-info"
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: impersonator}, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{authentication}, Resources: []string{"users"}, ResourceNames: []string{seenUser, ruledUser}, Verbs: []string{userInfo}},
		{APIGroups: []string{authentication}, Resources: []string{"groups"}, ResourceNames: []string{seenGroup, ruledGroup}, Verbs: []string{userInfo}},
		{APIGroups: []string{"*"}, Resources: []string{"*"}, Verbs: []string{"impersonate-on:user-info:get", "impersonate-on:user-info:list", "impersonate-on:user-info:watch"}},
		{APIGroups: []string{authentication}, Resources: []string{"selfsubjectreviews"}, Verbs: []string{"impersonate-on:user-info:create"}},
		{APIGroups: []string{""}, Resources: []string{"pods/exec"}, Verbs: []string{"impersonate-on:user-info:create"}},
		{NonResourceURLs: []string{"*"}, Verbs: []string{"impersonate-on:user-info:get"}},
	}}
	if _, err := c.Client().RbacV1().ClusterRoles().Create(ctx, role, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	token, err := c.ServiceAccountToken(ctx, namespaceOfSecrets, impersonator, impersonator)
	if err != nil {
		t.Fatal(err)
	}
	// The caller is an administrator there, so only the account's own limits refuse anything.
	if _, err := c.Client().RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: seenUser}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "cluster-admin"},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: seenUser}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	return c, token
}

// TestClusterSeesTheCaller checks in the audit log of the managed API server who called, as whom,
// and with which audit ID: mode of identity, route, door, and ordinary request and upgrades.
func TestClusterSeesTheCaller(t *testing.T) {
	besideOthers(t)
	ctx := bounded(t, caseTimeout)
	c, stolen := seenCluster(ctx, t)
	g := shared.embedded
	for mode, m := range seenModes() {
		patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": m.annotations}})
		if err != nil {
			t.Fatal(err)
		}
		for _, route := range seenRoutes() {
			name := seenName(mode, route)
			register(ctx, t, shared.embeddedHub, lab.SecretOptions{Name: name, Tunnel: route == "tunnel", Data: map[string][]byte{
				"endpoint": []byte(c.Endpoint()), "ca.crt": c.CAPEM(), "token": []byte(stolen),
			}})
			if _, err := shared.embeddedHub.Client().CoreV1().Secrets(namespaceOfSecrets).Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		agent, err := g.StartAgent(ctx, seenName(mode, "tunnel"), c)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = agent.Kill() })
	}
	grant(ctx, t, seenUser, rbacv1.PolicyRule{APIGroups: []string{"cluster.core.oam.dev"}, Resources: []string{"clustergateways/proxy"}, Verbs: []string{"*"}})
	cert, key, err := shared.embeddedHub.ClientCertificate(seenUser, seenGroup)
	if err != nil {
		t.Fatal(err)
	}
	config := func(door lab.Via) *rest.Config {
		config := anonymous(g.RESTConfig(door))
		config.CertData, config.KeyData = cert, key
		return config
	}
	for mode, m := range seenModes() {
		for _, route := range seenRoutes() {
			for _, door := range doors() {
				t.Run(mode+" "+route+" "+string(door), func(t *testing.T) {
					testSeen(ctx, t, config(door), c, m, seenName(mode, route), mode+"-"+route+"-"+string(door))
				})
			}
		}
	}
	t.Run("stolen credential", func(t *testing.T) { testStolenImpersonator(ctx, t, c, stolen) })
}

func seenRoutes() []string { return []string{"direct", "tunnel"} }

// seenName returns the name of the cluster in a mode and by a route.
func seenName(mode, route string) string { return "seen-" + mode + "-" + route }

// testSeen sends requests to a cluster by one door. suffix makes the names of objects unique.
func testSeen(ctx context.Context, t *testing.T, config *rest.Config, c *lab.Cluster, m seenMode, name, suffix string) {
	a := &attack{t: t, config: config, base: gatewayPath + "/" + name + "/proxy"}
	labtest.Within(t, labtest.Timeout, "the grant to take effect", func() error {
		return wantCode(ask(ctx, t, config, http.MethodGet, a.base+"/version"), http.StatusOK)
	})
	if got := a.whoami(t, "Impersonate-User: e2e-somebody"); got != m.sees() && !strings.Contains(got, "403") && !strings.Contains(got, "400") {
		t.Errorf("the cluster sees %s", got)
	}
	if got := a.whoami(t); got != m.sees() {
		t.Errorf("the cluster sees %s, want %s", got, m.sees())
	}
	for kind, request := range map[string]string{
		"ordinary":  "GET " + a.base + "/api/v1/namespaces/default/configmaps/%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
		"websocket": "GET " + a.base + "/api/v1/namespaces/default/pods/%s/exec?command=x HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AQIDBAUGBwgJCgsMDQ4PEA==\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n",
		"spdy":      "POST " + a.base + "/api/v1/namespaces/default/pods/%s/exec?command=x HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v5.channel.k8s.io\r\nContent-Length: 0\r\n\r\n",
	} {
		object := "e2e-" + kind + "-" + suffix
		answer := a.send(t, fmt.Sprintf(request, object))
		event := seenEvent(t, c, object)
		if err := m.check(&event); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		if id := string(event.AuditID); id == "" || !strings.Contains(answer, id) {
			t.Errorf("%s: the audit ID of the cluster is %s, and the answer was %s", kind, id, answer)
		}
	}
}

// seenEvent waits for the audit event of the cluster about an object.
func seenEvent(t *testing.T, c *lab.Cluster, name string) auditv1.Event {
	t.Helper()
	var found auditv1.Event
	labtest.Within(t, labtest.Timeout, "the audit event about "+name, func() error {
		events, err := c.AuditEvents()
		if err != nil {
			return err
		}
		for _, e := range events {
			if e.ObjectRef != nil && e.ObjectRef.Name == name {
				found = e
				return nil
			}
		}
		return fmt.Errorf("not among %d events", len(events))
	})
	return found
}

// testStolenImpersonator tries what somebody could do who has stolen the account's token.
func testStolenImpersonator(ctx context.Context, t *testing.T, c *lab.Cluster, stolen string) {
	as := func(user string, groups ...string) rest.ImpersonationConfig {
		return rest.ImpersonationConfig{UserName: user, Groups: groups}
	}
	list := func(client kubernetes.Interface) error {
		_, err := client.CoreV1().Secrets("default").List(ctx, metav1.ListOptions{})
		return err
	}
	for name, try := range map[string]struct {
		as rest.ImpersonationConfig
		do func(kubernetes.Interface) error
	}{
		"read Secrets as itself":         {do: list},
		"be system:masters":              {as: as(seenUser, "system:masters"), do: list},
		"be an administrator":            {as: as("kubernetes-admin", "system:masters"), do: list},
		"be another user":                {as: as("e2e-other"), do: list},
		"be the user with another group": {as: as(seenUser, "e2e-other-group"), do: list},
		"be a group with another user":   {as: as("e2e-other", seenGroup), do: list},
		"be a Node":                      {as: as("system:node:n", "system:nodes"), do: list},
		"be another ServiceAccount":      {as: as("system:serviceaccount:kube-system:default"), do: list},
		"be the controller manager":      {as: as("system:kube-controller-manager"), do: list},
		"be anonymous":                   {as: as("system:anonymous"), do: list},
		"have a UID":                     {as: rest.ImpersonationConfig{UserName: seenUser, UID: "1"}, do: list},
		"have extra values":              {as: rest.ImpersonationConfig{UserName: seenUser, Extra: map[string][]string{"scopes": {"x"}}}, do: list},
		"delete as the user": {as: as(seenUser), do: func(k kubernetes.Interface) error {
			return k.CoreV1().Namespaces().Delete(ctx, "default", metav1.DeleteOptions{})
		}},
		"delete Secrets as the user": {as: as(seenUser), do: func(k kubernetes.Interface) error {
			return k.CoreV1().Secrets("default").DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{})
		}},
		"bind cluster-admin as the user": {as: as(seenUser), do: func(k kubernetes.Interface) error { return bindAdmin(ctx, k) }},
		"bind cluster-admin as itself":   {do: func(k kubernetes.Interface) error { return bindAdmin(ctx, k) }},
		"widen its role as itself":       {do: func(k kubernetes.Interface) error { return widen(ctx, k) }},
		"widen its role as the user":     {as: as(seenUser), do: func(k kubernetes.Interface) error { return widen(ctx, k) }},
		"get a token of an account":      {as: as(seenUser), do: func(k kubernetes.Interface) error { return mint(ctx, k) }},
		"get a token as itself":          {do: func(k kubernetes.Interface) error { return mint(ctx, k) }},
		"create a certificate request":   {as: as(seenUser), do: func(k kubernetes.Interface) error { return approve(ctx, k) }},
		"write its Secret as the user": {as: as(seenUser), do: func(k kubernetes.Interface) error {
			return k.CoreV1().Secrets("default").Delete(ctx, "x", metav1.DeleteOptions{})
		}},
	} {
		config := rest.AnonymousClientConfig(c.RESTConfig())
		config.BearerToken, config.Impersonate = stolen, try.as
		client, err := kubernetes.NewForConfig(config)
		if err != nil {
			t.Fatal(err)
		}
		if err := try.do(client); !apierrors.IsForbidden(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// What it may do, so that the test can fail.
	config := rest.AnonymousClientConfig(c.RESTConfig())
	config.BearerToken, config.Impersonate = stolen, as(seenUser, seenGroup)
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := list(client); err != nil {
		t.Errorf("reading as the user: %v", err)
	}
}

func bindAdmin(ctx context.Context, k kubernetes.Interface) error {
	_, err := k.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "e2e-stolen"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "cluster-admin"},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: namespaceOfSecrets, Name: impersonator}},
	}, metav1.CreateOptions{})
	return err
}

func widen(ctx context.Context, k kubernetes.Interface) error {
	_, err := k.RbacV1().ClusterRoles().Patch(ctx, impersonator, types.JSONPatchType,
		[]byte(`[{"op":"add","path":"/rules/-","value":{"apiGroups":["*"],"resources":["*"],"verbs":["*"]}}]`), metav1.PatchOptions{})
	return err
}

func mint(ctx context.Context, k kubernetes.Interface) error {
	_, err := k.CoreV1().ServiceAccounts(namespaceOfSecrets).CreateToken(ctx, impersonator, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	return err
}

func approve(ctx context.Context, k kubernetes.Interface) error {
	_, err := k.CertificatesV1().CertificateSigningRequests().Patch(ctx, "x", types.MergePatchType, []byte(`{"spec":{}}`), metav1.PatchOptions{}, "approval")
	return err
}
