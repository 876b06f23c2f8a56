// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/pki"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

// TestDoctorStages shows, for each way in which a cluster cannot be reached, at which stage doctor
// finds it broken, what it says of the other stages, and that it says what to do.
func TestDoctorStages(t *testing.T) {
	t.Parallel()
	const version = "/version"
	proxy := "GET " + v1alpha1.ProxyPath("edge-1") + version
	accessReview := "POST " + v1alpha1.ProxyPath("edge-1") + "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
	rulesReview := "POST " + v1alpha1.ProxyPath("edge-1") + "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
	clusterGateway := "GET " + gatewayPath + "/clustergateways/edge-1"
	answerVersion := func(with any) func(*fakeHub) { return func(h *fakeHub) { h.answer(proxy, with) } }
	rules := func(resources ...string) func(*fakeHub) {
		return func(h *fakeHub) {
			c := testCluster("edge-1", "direct")
			c.Annotations[v1alpha1.AnnotationAccess] = "edit"
			h.answer(clusterGateway, c)
			h.answer(rulesReview, review(map[string]any{"incomplete": false, "nonResourceRules": []any{}, "resourceRules": []any{
				map[string]any{"verbs": []string{"create"}, "resources": resources},
			}}))
		}
	}
	for _, c := range []struct {
		name    string
		route   string
		change  func(*fakeHub)
		broken  Stage
		ok      []Stage  // the rest is unknown
		message []string // in the finding of the broken stage, or else in any
		advice  string   // in the advice
	}{
		{name: "nothing", route: "direct", ok: []Stage{StageHub, StageSecret, StageDial, StageTLS, StageCredential, StageRBAC}, message: []string{`"gateway" has --access=admin`}},
		{name: "the callers are seen", route: "direct", change: func(h *fakeHub) {
			c := testCluster("edge-1", "direct")
			c.Status.Identity = v1alpha1.IdentityImpersonate
			c.Annotations[v1alpha1.AnnotationImpersonation] = `{"groups":["a","b"],"readOnly":true}`
			h.add(c)
		}, ok: []Stage{StageHub, StageSecret, StageDial, StageTLS, StageCredential, StageRBAC},
			message: []string{"sees the callers themselves. You are", "act as any user and 2 groups, only to read"}},
		{name: "nothing, with an agent that runs as a process", route: "tunnel",
			ok: []Stage{StageHub, StageSecret, StageAgent, StageDial, StageTLS, StageCredential, StageRBAC}, message: []string{"set --out-dir DIR"}},
		{name: "no gateway on the hub", change: func(h *fakeHub) { delete(h.answers, "GET "+gatewayPath) },
			broken: StageHub, message: []string{"no gateway"}, advice: "--kubeconfig"},
		{name: "no right on the hub", change: func(h *fakeHub) {
			h.answer("POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review(map[string]any{"allowed": false}))
		}, broken: StageHub, message: []string{`"jane" may not use this cluster`, "get clustergateways/proxy"}, advice: "clustergateways/proxy"},
		{name: "not registered", change: func(h *fakeHub) { delete(h.answers, clusterGateway) },
			broken: StageSecret, ok: []Stage{StageHub}, message: []string{"cluster-gateway-system/edge-1"}, advice: "agent-bootstrap register edge-1"},
		{name: "invited", change: func(h *fakeHub) {
			delete(h.answers, clusterGateway)
			invitation := testInvitation(t, "edge-1", registration.InvitationOpen)
			invitation.TypeMeta = metav1.TypeMeta{Kind: "Secret", APIVersion: "v1"}
			h.answer("GET /api/v1/namespaces/cluster-gateway-system/secrets/"+invitation.Name, &invitation)
		}, broken: StageSecret, ok: []Stage{StageHub}, message: []string{"invited, but it is not registered yet", "open, expires in 60m"}, advice: "kubectl apply"},
		{name: "invalid Secret", change: func(h *fakeHub) {
			h.answer(clusterGateway, testCluster("edge-1", "direct", readyCondition(metav1.ConditionFalse, v1alpha1.ReasonInvalidSecret, "ca.crt: no certificate")))
		}, route: "direct", broken: StageSecret, ok: []Stage{StageHub}, message: []string{"ca.crt: no certificate"}, advice: "correct the key"},
		{name: "invalid Secret, as the proxy sees it", route: "direct", change: answerVersion(failure(503, v1alpha1.CauseInvalidSecret, "its Secret is invalid: token")),
			broken: StageSecret, ok: []Stage{StageHub}, message: []string{"token"}, advice: "correct the key"},
		{name: "no agent", route: "tunnel", change: answerVersion(failure(503, v1alpha1.CauseTunnel, "no agent is connected")),
			broken: StageAgent, ok: []Stage{StageHub, StageSecret}, message: []string{"no agent is connected"}, advice: "kubectl -n cluster-gateway-agent get pods"},
		{name: "the agent cannot dial", route: "tunnel", change: answerVersion(failure(502, v1alpha1.CauseAgent, "dial tcp: connection refused")),
			broken: StageDial, ok: []Stage{StageHub, StageSecret, StageAgent}, message: []string{"connection refused"}, advice: "no program listens"},
		{name: "a firewall between the agent and the API server", route: "tunnel", change: answerVersion(failure(502, v1alpha1.CauseAgent, "dial tcp: i/o timeout")),
			broken: StageDial, ok: []Stage{StageHub, StageSecret, StageAgent}, message: []string{"i/o timeout"}, advice: "between the agent and it"},
		{name: "the gateway cannot dial", route: "direct", change: answerVersion(failure(502, v1alpha1.CauseEndpoint, "dial tcp: i/o timeout")),
			broken: StageDial, ok: []Stage{StageHub, StageSecret}, message: []string{"i/o timeout"}, advice: "between the gateway and it"},
		{name: "another CA", route: "direct", change: answerVersion(failure(502, v1alpha1.CauseTLS, "x509: unknown authority")),
			broken: StageTLS, ok: []Stage{StageHub, StageSecret, StageDial}, message: []string{"x509"}, advice: "ca.crt"},
		{name: "credential rejected", route: "direct", change: answerVersion(failure(502, v1alpha1.CauseCredential, "401")),
			broken: StageCredential, ok: []Stage{StageHub, StageSecret, StageDial, StageTLS}, message: []string{"401"}, advice: "agent-bootstrap rotate edge-1"},
		{name: "no answer", route: "tunnel", change: answerVersion(failure(502, v1alpha1.CauseResponse, "EOF")),
			broken: StageDial, ok: []Stage{StageHub, StageSecret, StageAgent}, message: []string{"EOF"}, advice: "the answer was incomplete"},
		{name: "the cluster forbids", route: "direct", change: answerVersion(forbidden("cannot get path /version")),
			broken: StageRBAC, ok: []Stage{StageHub, StageSecret, StageDial, StageTLS, StageCredential}, message: []string{"/version"}, advice: "--access admin"},
		{name: "the gateway fails", route: "direct", change: answerVersion(&metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Code: 500, Message: "panic"}),
			broken: StageHub, ok: []Stage{StageSecret}, message: []string{"panic"}, advice: "log of the gateway"},
		{name: "rights missing", route: "direct", change: func(h *fakeHub) { h.answer(accessReview, review(map[string]any{"allowed": false})) },
			broken: StageRBAC, ok: []Stage{StageHub, StageSecret, StageDial, StageTLS, StageCredential}, message: []string{`"gateway"`, "do everything", "--access=admin"}, advice: "--access admin"},
		{name: "a role with rights", route: "direct", change: rules("pods"),
			ok: []Stage{StageHub, StageSecret, StageDial, StageTLS, StageCredential, StageRBAC}, message: []string{"ClusterRole edit"}},
		{name: "a role without rights", route: "direct", change: rules("selfsubjectreviews", "selfsubjectaccessreviews"),
			broken: StageRBAC, ok: []Stage{StageHub, StageSecret, StageDial, StageTLS, StageCredential}, message: []string{"has no rights"}, advice: "--access edit"},
		{name: "ClusterGateway that the caller may not read", route: "", change: func(h *fakeHub) {
			h.answer(clusterGateway, forbidden(`cannot get resource "clustergateways"`))
			h.answer(rulesReview, review(map[string]any{"resourceRules": []any{map[string]any{"verbs": []string{"get"}, "resources": []string{"pods"}}}}))
		}, ok: []Stage{StageHub, StageAgent, StageDial, StageTLS, StageCredential, StageRBAC}, message: []string{`cannot get resource "clustergateways"`, "or not needed"}},
		{name: "ClusterGateway that the caller may not read, and there is none", change: func(h *fakeHub) {
			h.answer(clusterGateway, forbidden(`cannot get resource "clustergateways"`))
			delete(h.answers, proxy)
		}, broken: StageSecret, ok: []Stage{StageHub}, message: []string{"not found"}, advice: "agent-bootstrap register edge-1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			h := newFakeHub(t)
			h.add(testCluster("edge-1", c.route))
			if c.change != nil {
				c.change(h)
			}
			d, text, err := diagnoseCluster(t, h)
			if d.Broken != c.broken {
				t.Fatalf("%q is broken, want %q:\n%s", d.Broken, c.broken, text)
			}
			if c.broken != "" && (err == nil || err.Error() != `the check of cluster "edge-1" failed at stage "`+string(c.broken)+`"`) || c.broken == "" && err != nil {
				t.Errorf("it ends with %v", err)
			}
			var ok []Stage
			var messages []string
			for _, f := range d.Findings {
				switch {
				case f.State == OK:
					ok = append(ok, f.Stage)
				case f.State == Broken && f.Stage != c.broken:
					t.Errorf("%q is broken as well", f.Stage)
				}
				if (f.Advice != "") != (f.State == Broken) {
					t.Errorf("the advice for %q, which is %s, is %q", f.Stage, f.State, f.Advice)
				}
				if f.Message == "" {
					t.Errorf("it says nothing about %q", f.Stage)
				}
				if c.broken == "" || f.Stage == c.broken {
					messages = append(messages, f.Message)
				}
				if f.Stage == c.broken && !strings.Contains(f.Advice, c.advice) {
					t.Errorf("the advice is %q, want %q in it", f.Advice, c.advice)
				}
			}
			if diff := cmp.Diff(c.ok, ok); diff != "" {
				t.Errorf("the stages that are ok differ (-want +got):\n%s", diff)
			}
			for _, want := range c.message {
				if !strings.Contains(strings.Join(messages, "\n"), want) {
					t.Errorf("it does not say %q:\n%s", want, text)
				}
			}
		})
	}
}

// diagnoseCluster runs doctor twice, for its JSON and for its text.
func diagnoseCluster(t *testing.T, h *fakeHub, more ...string) (d Diagnosis, text string, err error) {
	t.Helper()
	out, _, err := h.run(t, append([]string{"doctor", "edge-1", "-o", "json"}, more...)...)
	if jsonErr := json.Unmarshal([]byte(out), &d); jsonErr != nil {
		t.Fatalf("%v, %v\n%s", err, jsonErr, out)
	}
	text, _, _ = h.run(t, append([]string{"doctor", "edge-1"}, more...)...)
	return d, text, err
}

// TestDoctorText shows what doctor prints.
func TestDoctorText(t *testing.T) {
	t.Parallel()
	h := newFakeHub(t)
	h.add(testCluster("edge-1", "direct"))
	h.answer("GET "+v1alpha1.ProxyPath("edge-1")+"/version", failure(502, v1alpha1.CauseCredential, "the cluster rejected the gateway's credential (401)"))
	out, _, _ := h.run(t, "doctor", "edge-1")
	_, rest, _ := strings.Cut(out, "\n") // the first line has the address of the hub
	if diff := cmp.Diff(`secret       ok      cluster-gateway-system/edge-1, route direct
dial         ok      the API server accepts connections
tls          ok      the API server has the expected certificate
credential   BROKEN  the cluster rejected the gateway's credential (401)
                     Next: create a new credential: agent-bootstrap rotate edge-1 --cluster-kubeconfig FILE
rbac         ?       not checked
`, rest); diff != "" {
		t.Errorf("doctor (-want +got):\n%s", diff)
	}
}

// TestDoctorInside shows what doctor adds if it can connect to the cluster itself.
func TestDoctorInside(t *testing.T) {
	t.Parallel()
	const agent = "/apis/apps/v1/namespaces/cluster-gateway-agent/deployments/konnectivity-agent"
	const pods = "/api/v1/namespaces/cluster-gateway-agent/pods"
	deployment := func(replicas int) map[string]any {
		return map[string]any{"kind": "Deployment", "apiVersion": "apps/v1", "spec": map[string]any{"replicas": replicas}}
	}
	podList := func(items ...any) map[string]any {
		return map[string]any{"kind": "PodList", "apiVersion": "v1", "items": append([]any{}, items...)}
	}
	noAgent := failure(503, v1alpha1.CauseTunnel, "no agent is connected")
	for _, c := range []struct {
		name    string
		failure *metav1.Status
		answers map[string]any // of the cluster
		broken  Stage
		advice  []string
	}{
		{"no Deployment", noAgent, nil, StageAgent, []string{"no Deployment cluster-gateway-agent/konnectivity-agent", "agent-bootstrap register edge-1"}},
		{"no replicas", noAgent, map[string]any{"GET " + agent: deployment(0)}, StageAgent, []string{"kubectl -n cluster-gateway-agent scale deployment konnectivity-agent --replicas 2"}},
		{"no Pods", noAgent, map[string]any{"GET " + agent: deployment(2), "GET " + pods: podList()}, StageAgent, []string{"describe replicasets"}},
		{"Pods that do not run", noAgent, map[string]any{"GET " + agent: deployment(2), "GET " + pods: podList(
			map[string]any{"metadata": map[string]any{"name": "a"}, "status": map[string]any{"phase": "Pending",
				"conditions": []any{map[string]any{"type": "PodScheduled", "status": "False", "message": "no node has room"}}}},
			map[string]any{"metadata": map[string]any{"name": "b"}, "status": map[string]any{"phase": "Pending",
				"containerStatuses": []any{map[string]any{"state": map[string]any{"waiting": map[string]any{"reason": "ImagePullBackOff", "message": "no such image"}}}}}},
		)}, StageAgent, []string{"Pod a is Pending: no node has room", "Pod b is Pending: ImagePullBackOff no such image"}},
		{"no right to read", noAgent, map[string]any{"GET " + agent: forbidden("cannot get deployments")}, StageAgent, []string{"cannot get deployments"}},
		{"the API server answers", failure(502, v1alpha1.CauseAgent, "i/o timeout"), nil, StageDial, []string{"between the agent and the API server", "NetworkPolicies"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			h, inside := newFakeHub(t), newFakeHub(t)
			maps.Copy(inside.answers, c.answers)
			h.add(testCluster("edge-1", "tunnel"))
			h.answer("GET "+v1alpha1.ProxyPath("edge-1")+"/version", c.failure)
			d, text, _ := diagnoseCluster(t, h, "--cluster-kubeconfig", inside.kubeconfig)
			i := slices.IndexFunc(d.Findings, func(f Finding) bool { return f.Stage == c.broken })
			if d.Broken != c.broken {
				t.Fatalf("%q is broken, want %q:\n%s", d.Broken, c.broken, text)
			}
			for _, want := range c.advice {
				if !strings.Contains(d.Findings[i].Advice, want) {
					t.Errorf("it does not say %q:\n%s", want, text)
				}
			}
		})
	}
	t.Run("the cluster does not answer", func(t *testing.T) {
		t.Parallel()
		h := newFakeHub(t)
		h.add(testCluster("edge-1", "tunnel"))
		h.answer("GET "+v1alpha1.ProxyPath("edge-1")+"/version", failure(502, v1alpha1.CauseAgent, "i/o timeout"))
		d, text, _ := diagnoseCluster(t, h, "--cluster-kubeconfig", filepath.Join(t.TempDir(), "none"))
		if d.Broken != StageDial || !strings.Contains(text, "cannot be reached with --cluster-kubeconfig either") {
			t.Errorf("%q is broken:\n%s", d.Broken, text)
		}
	})
}

// TestDoctorCertificate shows what doctor says of the certificate of an agent that is not
// connected.
func TestDoctorCertificate(t *testing.T) {
	t.Parallel()
	tunnelCA, anotherCA := testAuthority(t), testAuthority(t)
	issue := func(ca *pki.Authority, cluster string) func(*testing.T) ([]byte, []byte) {
		return func(t *testing.T) ([]byte, []byte) {
			certificate, key, err := ca.IssueAgent(cluster, time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			return certificate, key
		}
	}
	for _, c := range []struct {
		name   string
		issue  func(*testing.T) (certificate, key []byte)
		later  time.Duration // the time that passes before doctor runs
		broken Stage
		want   string
	}{
		{"right", issue(tunnelCA, "edge-1"), 0, StageAgent, `for cluster "edge-1", valid until`},
		{"of another CA", issue(anotherCA, "edge-1"), 0, StageCertificate, "signed by"},
		{"of another cluster", issue(tunnelCA, "edge-2"), 0, StageCertificate, "edge-2"},
		{"expired", issue(tunnelCA, "edge-1"), 2 * time.Hour, StageCertificate, "expired at"},
		{"of an invitation", func(t *testing.T) ([]byte, []byte) {
			certificate, key, err := tunnelCA.IssueInvitation("edge-1", time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			return certificate, key
		}, 0, StageCertificate, "invitation"},
		{"with another key", func(t *testing.T) ([]byte, []byte) {
			certificate, _ := issue(tunnelCA, "edge-1")(t)
			_, key := issue(tunnelCA, "edge-1")(t)
			return certificate, key
		}, 0, StageCertificate, "private key does not match"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			h := newFakeHub(t)
			h.now = time.Now().Add(c.later)
			h.add(testCluster("edge-1", "tunnel"))
			h.answer("GET "+v1alpha1.ProxyPath("edge-1")+"/version", failure(503, v1alpha1.CauseTunnel, "no agent is connected"))
			h.answer("GET /api/v1/namespaces/cluster-gateway-system/configmaps/"+pki.ConfigMap, map[string]any{
				"kind": "ConfigMap", "apiVersion": "v1", "data": map[string]string{pki.KeyBundle: string(tunnelCA.Bundle())},
			})
			dir := t.TempDir()
			certificate, key := c.issue(t)
			writeAgentFiles(t, dir, certificate, key, tunnelCA.Bundle())
			d, text, _ := diagnoseCluster(t, h, "--out-dir", dir)
			if d.Broken != c.broken || !strings.Contains(d.Findings[2].Message, c.want) {
				t.Errorf("%q is broken, want %q and %q:\n%s", d.Broken, c.broken, c.want, text)
			}
		})
	}
	t.Run("of the tunnel's CA", func(t *testing.T) {
		t.Parallel()
		secrets := fake.NewClientset()
		load := func(agentsCA string) *pki.Authority {
			k := pki.NewKeeper(pki.KeeperConfig{Client: secrets, Namespace: "cluster-gateway-system", Hosts: []string{"tunnel.example.com"}, AgentsCASecret: agentsCA})
			if err := k.LoadOrCreate(t.Context()); err != nil {
				t.Fatal(err)
			}
			return k.Authority()
		}
		earlier := load("")
		current := load(pki.AgentsCASecret)
		for _, c := range []struct {
			name   string
			issuer *pki.Authority
			want   bool
		}{{"of an earlier version", earlier, true}, {"of this version", current, false}} {
			h := newFakeHub(t)
			h.now = time.Now()
			h.add(testCluster("edge-1", "tunnel"))
			h.answer("GET "+v1alpha1.ProxyPath("edge-1")+"/version", failure(503, v1alpha1.CauseTunnel, "no agent is connected"))
			for _, name := range []string{pki.CASecret, pki.AgentsCASecret} {
				secret, err := secrets.CoreV1().Secrets("cluster-gateway-system").Get(t.Context(), name, metav1.GetOptions{})
				if err != nil {
					t.Fatal(err)
				}
				secret.TypeMeta = metav1.TypeMeta{Kind: "Secret", APIVersion: "v1"}
				h.answer("GET /api/v1/namespaces/cluster-gateway-system/secrets/"+name, secret)
			}
			dir := t.TempDir()
			certificate, key := issue(c.issuer, "edge-1")(t)
			writeAgentFiles(t, dir, certificate, key, current.Bundle())
			d, text, _ := diagnoseCluster(t, h, "--out-dir", dir)
			const note = "It is from the tunnel's CA. The next renewal replaces it by one from the CA of agents' certificates; to do so now: agent-bootstrap rotate edge-1"
			if d.Broken != StageAgent || strings.Contains(d.Findings[2].Message, note) != c.want {
				t.Errorf("a certificate %s: %q is broken:\n%s", c.name, d.Broken, text)
			}
		}
	})
	t.Run("no files", func(t *testing.T) {
		t.Parallel()
		h := newFakeHub(t)
		h.add(testCluster("edge-1", "tunnel"))
		dir := t.TempDir()
		if _, text, err := diagnoseCluster(t, h, "--out-dir", dir); err != nil || !strings.Contains(text, `it has no files of an agent`) {
			t.Errorf("%v\n%s", err, text)
		}
	})
}

// writeAgentFiles writes the files of an agent that runs as a process.
func writeAgentFiles(t *testing.T, dir string, certificate, key, bundle []byte) {
	t.Helper()
	for name, data := range map[string][]byte{fileCert: certificate, fileKey: key, fileCA: bundle} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
