// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

// withoutTrailingSpace makes a table comparable with a literal.
func withoutTrailingSpace(text string) string {
	lines := strings.Split(text, "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	return strings.Join(lines, "\n")
}

func testInvitation(t *testing.T, name string, state registration.InvitationState) corev1.Secret {
	t.Helper()
	record := &registration.Invitation{
		Name: name, Fingerprint: strings.Repeat("a", 64), Chain: 1, Expires: testNow.Add(time.Hour), Address: "gateway:8132", HubUID: "hub", Endpoint: registration.DefaultTunnelEndpoint,
		Access: "view", TokenLifetime: time.Hour, CertificateLifetime: time.Hour, State: state, UsedAt: testNow,
	}
	secret, err := record.Secret("cluster-gateway-system")
	if err != nil {
		t.Fatal(err)
	}
	return *secret
}

func TestList(t *testing.T) {
	t.Parallel()
	soon, past := metav1.NewTime(testNow.Add(90*time.Minute)), metav1.NewTime(testNow.Add(-time.Minute))
	good := testCluster("edge-1", "tunnel", readyCondition(metav1.ConditionTrue, "Reachable", ""))
	good.Status.CredentialExpirationTime = &soon
	bad := testCluster("near-1", "direct", readyCondition(metav1.ConditionFalse, "InvalidSecret", "token is missing"))
	bad.Status.CredentialExpirationTime = &past
	fresh := testCluster("new", "")
	fresh.Status.Version = ""

	h := newFakeHub(t)
	h.answer("GET "+gatewayPath+"/clustergateways", clusterList(*good, *bad, *fresh))
	h.answer("GET /api/v1/namespaces/cluster-gateway-system/secrets", &corev1.SecretList{
		TypeMeta: metav1.TypeMeta{Kind: "SecretList", APIVersion: "v1"},
		Items:    []corev1.Secret{testInvitation(t, "edge-2", registration.InvitationOpen), testInvitation(t, "edge-1", registration.InvitationDone)},
	})
	const clusters = `NAME     ROUTE    READY                   VERSION   CREDENTIAL EXPIRES   AGE
edge-1   tunnel   True                    v1.36.1   in 90m               2d
near-1   direct   False (InvalidSecret)   v1.36.1   expired              2d
new      -        Unknown                 -         -                    2d
`
	out, _, err := h.run(t, "list")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(clusters+`
INVITATION   ACCESS   STATE
edge-2       view     open, expires in 60m (2026-01-02 04:04 UTC)
`, withoutTrailingSpace(out)); diff != "" {
		t.Errorf("list (-want +got):\n%s", diff)
	}

	// A caller who may not read Secrets sees the clusters.
	h.answer("GET /api/v1/namespaces/cluster-gateway-system/secrets", forbidden("secrets is forbidden"))
	if out, _, err = h.run(t, "list"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(clusters, withoutTrailingSpace(out)); diff != "" {
		t.Errorf("list without the right to read Secrets (-want +got):\n%s", diff)
	}
	if out, _, err = h.run(t, "list", "-o", "json"); err != nil || !strings.Contains(out, `"name": "near-1"`) {
		t.Errorf("list -o json: %v\n%s", err, out)
	}
}

func TestListFails(t *testing.T) {
	t.Parallel()
	h := newFakeHub(t)
	if out, errOut, err := h.run(t, "list"); err != nil || out != "" || !strings.HasPrefix(errOut, "No clusters are registered.") {
		t.Errorf("without a cluster: %v\n%s%s", err, out, errOut)
	}
	if _, _, err := h.run(t, "list", "-o", "xml"); err == nil || err.Error() != `invalid --output "xml": must be wide, name, yaml or json` {
		t.Errorf("-o xml: %v", err)
	}
	h.answer("GET "+gatewayPath+"/clustergateways", forbidden(`cannot list resource "clustergateways"`))
	if _, _, err := h.run(t, "list"); err == nil || !strings.Contains(err.Error(), `cannot list resource "clustergateways"`) {
		t.Errorf("forbidden: %v", err)
	}
}

func TestStatus(t *testing.T) {
	t.Parallel()
	h := newFakeHub(t)
	soon := metav1.NewTime(testNow.Add(90 * time.Minute))
	c := testCluster("near-1", "direct", readyCondition(metav1.ConditionTrue, "Reachable", "the cluster answers"))
	c.Status.CredentialExpirationTime = &soon
	c.Spec.Access.Endpoint = &v1alpha1.ClusterEndpoint{Type: v1alpha1.EndpointTypeConst, Const: &v1alpha1.ClusterEndpointConst{Address: "https://10.0.0.1:6443"}}
	h.add(c)
	status := func(want string, args ...string) {
		t.Helper()
		out, errOut, err := h.run(t, append([]string{"status"}, args...)...)
		if err != nil {
			t.Errorf("status %v: %v\n%s", args, err, errOut)
		}
		if diff := cmp.Diff(want, out); diff != "" {
			t.Errorf("status %v (-want +got):\n%s", args, diff)
		}
	}
	status(`Name:             near-1
Route:            direct
Endpoint:         https://10.0.0.1:6443
Ready:            True
Answers now:      yes, v1.36.1
Credential:       expires in 90m (2026-01-02 04:34 UTC)
Condition Ready:  True Reachable the cluster answers
`, "near-1")

	h.answer("GET "+v1alpha1.ProxyPath("near-1")+"/version", failure(502, v1alpha1.CauseEndpoint, "connection refused"))
	past := metav1.NewTime(testNow.Add(-time.Minute))
	c.Status.CredentialExpirationTime = &past
	status(`Name:             near-1
Route:            direct
Endpoint:         https://10.0.0.1:6443
Ready:            True
Answers now:      no: connection refused
Credential:       expired at 2026-01-02 03:03 UTC
Condition Ready:  True Reachable the cluster answers
`, "near-1")

	// With an agent in Pods, as the cluster describes it.
	tunnel := testCluster("edge-1", "tunnel", readyCondition(metav1.ConditionTrue, "Reachable", ""))
	h.add(tunnel)
	h.answer("GET "+v1alpha1.ProxyPath("edge-1")+"/apis/apps/v1/namespaces/cluster-gateway-agent/deployments/konnectivity-agent",
		map[string]any{"kind": "Deployment", "apiVersion": "apps/v1", "status": map[string]any{"replicas": 2, "readyReplicas": 1}})
	status(`Name:             edge-1
Route:            tunnel
Ready:            True
Answers now:      yes, v1.36.1
Agent:            1 of 2 Pods ready
Condition Ready:  True Reachable
`, "edge-1")

	// Invited.
	invitation := testInvitation(t, "edge-2", registration.InvitationOpen)
	invitation.TypeMeta = metav1.TypeMeta{Kind: "Secret", APIVersion: "v1"}
	h.answer("GET /api/v1/namespaces/cluster-gateway-system/secrets/"+invitation.Name, &invitation)
	status(`Name:        edge-2
Ready:       not registered yet
Invitation:  open, expires in 60m (2026-01-02 04:04 UTC)
`, "edge-2")

	if _, _, err := h.run(t, "status", "none"); err == nil || err.Error() != `cluster "none" is not registered. To list the registered clusters: agent-bootstrap list` {
		t.Errorf("status of a cluster that is not registered: %v", err)
	}
	if out, _, err := h.run(t, "status", "near-1", "-o", "yaml"); err != nil || !strings.Contains(out, "kind: ClusterGateway\n") {
		t.Errorf("status -o yaml: %v\n%s", err, out)
	}
}

// TestStatusLimited shows what a caller sees who may use a cluster, but not read its
// ClusterGateway.
func TestStatusLimited(t *testing.T) {
	t.Parallel()
	h := newFakeHub(t)
	h.add(testCluster("edge-1", "tunnel"))
	h.answer("GET "+gatewayPath+"/clustergateways/edge-1", forbidden(`cannot get resource "clustergateways"`))
	out, errOut, err := h.run(t, "status", "edge-1")
	if err != nil || !strings.Contains(out, "yes, v1.36.1") || !strings.Contains(out, "unknown") || !strings.Contains(errOut, `cannot get resource "clustergateways"`) {
		t.Errorf("%v\n%s%s", err, out, errOut)
	}
	h.answer("GET "+v1alpha1.ProxyPath("edge-1")+"/version", forbidden(`cannot get resource "clustergateways/proxy"`))
	if _, _, err := h.run(t, "status", "edge-1"); err == nil || !strings.Contains(err.Error(), `cannot get resource "clustergateways"`) {
		t.Errorf("without any right: %v", err)
	}
}
