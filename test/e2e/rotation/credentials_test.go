// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package rotation

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/pki"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
	"github.com/oam-dev/cluster-gateway/test/lab"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

// caseTimeout bounds each test except TestSoak.
const caseTimeout = 15 * time.Minute

func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), caseTimeout)
	t.Cleanup(cancel)
	return ctx
}

// condition returns a condition of the cluster, as the gateway reports it.
func (s *site) condition(ctx context.Context, kind string) (metav1.Condition, error) {
	config := s.RESTConfig(lab.ViaHub)
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return metav1.Condition{}, err
	}
	answer, err := send(ctx, client, http.MethodGet, config.Host+gateways+"/"+clusterName, nil)
	if err != nil {
		return metav1.Condition{}, err
	}
	var cluster v1alpha1.ClusterGateway
	if err := json.Unmarshal(answer, &cluster); err != nil {
		return metav1.Condition{}, err
	}
	for _, c := range cluster.Status.Conditions {
		if c.Type == kind {
			return c, nil
		}
	}
	return metav1.Condition{}, fmt.Errorf("no condition %s in %s", kind, answer)
}

// waitForReason waits until a condition has this reason, and its message contains these words.
func (s *site) waitForReason(ctx context.Context, t *testing.T, kind, reason string, words ...string) {
	t.Helper()
	labtest.Within(t, noticed, kind+" to be "+reason, func() error {
		c, err := s.condition(ctx, kind)
		if err == nil && (c.Reason != reason || slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(c.Message, w) })) {
			err = fmt.Errorf("it is %+v", c)
		}
		return err
	})
}

// changes waits until read has returned n other values.
func changes(t *testing.T, n int, what string, read func() ([]byte, error)) {
	t.Helper()
	var last []byte
	seen := -1
	labtest.Within(t, 2*noticed, fmt.Sprintf("%d changes of %s", n, what), func() error {
		now, err := read()
		if err != nil {
			return err
		}
		if !bytes.Equal(last, now) {
			last, seen = now, seen+1
		}
		if seen < n {
			return fmt.Errorf("%d so far", seen)
		}
		return nil
	})
}

func (s *site) hubData(ctx context.Context, name, key string) func() ([]byte, error) {
	return func() ([]byte, error) {
		secret, err := s.hubSecret(ctx, name)
		if err != nil {
			return nil, err
		}
		return secret.Data[key], nil
	}
}

// withoutRight removes a verb from the Role of the gateway's account for maintenance, and returns a
// function that restores it.
func withoutRight(ctx context.Context, t *testing.T, resource, verb string) (restore func()) {
	t.Helper()
	roles := shared.edge.Client().RbacV1().Roles(agentNamespace)
	role, err := roles.Get(ctx, "cluster-gateway-maintenance", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	whole := role.DeepCopy()
	for i, rule := range role.Rules {
		if slices.Contains(rule.Resources, resource) {
			role.Rules[i].Verbs = slices.DeleteFunc(slices.Clone(rule.Verbs), func(v string) bool { return v == verb })
			if len(role.Rules[i].Verbs) == 0 {
				role.Rules[i].Verbs = []string{"deletecollection"} // a verb that allows nothing, because a rule must have at least one
			}
		}
	}
	if _, err := roles.Update(ctx, role, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		whole.ResourceVersion = ""
		if _, err := roles.Update(ctx, whole, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestTokens checks that the gateway renews a token at the API server of the cluster, over the
// tunnel, with no more permissions than the manifest grants. It does not renew a token that was
// written by hand, and it reports a refused renewal.
func TestTokens(t *testing.T) {
	exclusively(t, &shared.hubLock)
	ctx := bounded(t)
	s := beginRenewing(ctx, t, 3*time.Second)
	agents(t)
	agentBootstrap(ctx, t, registerArgs("--access", "impersonate")...)
	byHand, err := s.hubSecret(ctx, clusterName)
	if err != nil {
		t.Fatal(err)
	}
	byHand = &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "by-hand", Labels: map[string]string{v1alpha1.LabelCredentialType: byHand.Labels[v1alpha1.LabelCredentialType]}},
		Data:       byHand.Data,
	}
	secrets := shared.hub.Client().CoreV1().Secrets(hubNamespace)
	if _, err := secrets.Create(ctx, byHand, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = secrets.Delete(context.Background(), byHand.Name, metav1.DeleteOptions{}) }) // registered with the hub by then

	changes(t, 3, "the token", s.hubData(ctx, clusterName, "token"))
	s.waitForReason(ctx, t, v1alpha1.ConditionCredentialValid, v1alpha1.ReasonAccepted)
	if token, err := s.hubData(ctx, byHand.Name, "token")(); err != nil || !bytes.Equal(token, byHand.Data["token"]) {
		t.Errorf("a token that agent-bootstrap did not write was renewed (%v)", err)
	}
	withoutRight(ctx, t, "serviceaccounts/token", "create")
	s.waitForReason(ctx, t, v1alpha1.ConditionCredentialValid, v1alpha1.ReasonRenewalFailed, "could not be renewed", "forbidden")
}

// TestAgentCertificate checks that the gateway renews the certificate of an agent in Pods, over the
// tunnel, and restarts the agent. agent-bootstrap then has nothing to do. A refused renewal is
// reported, and tried again.
func TestAgentCertificate(t *testing.T) {
	exclusively(t, &shared.hubLock)
	ctx := bounded(t)
	s := begin(ctx, t)
	rolled := agents(t)
	const lifetime = 20 * time.Second
	args := registerArgs("--access", "impersonate", "--certificate-lifetime", lifetime.String())
	agentBootstrap(ctx, t, args...)
	certificate := func() ([]byte, error) {
		secret, err := agentSecret(ctx)
		if err != nil {
			return nil, err
		}
		return secret.Data["tls.crt"], nil
	}
	changes(t, 2, "the agent's certificate", certificate)
	labtest.Within(t, noticed, "the agent to be restarted", func() error {
		if n := rolled.Rolls(); n < 2 {
			return fmt.Errorf("it was restarted %d times", n)
		}
		return nil
	})
	labtest.Within(t, noticed, "register to find nothing to do", func() error {
		before, err := agentState(ctx)
		if err != nil {
			return err
		}
		said := agentBootstrap(ctx, t, append(args, "--wait", "0")...)
		after, err := agentState(ctx)
		if err != nil {
			return err
		}
		if before != after { // renewed in the meantime
			return fmt.Errorf("%+v, and before %+v:\n%s", after, before, said)
		}
		if regexp.MustCompile(`\b(created|changed|issued)\b`).MatchString(said) {
			return fmt.Errorf("it printed\n%s", said)
		}
		return nil
	})
	if life := pki.Lifetime(agentCertificate(ctx, t)); life < lifetime-time.Second || life > lifetime+time.Second {
		t.Errorf("the lifetime of the certificate is %s, want %s", life, lifetime)
	}
	restore := withoutRight(ctx, t, "secrets", "patch")
	s.waitForReason(ctx, t, v1alpha1.ConditionCertificateValid, v1alpha1.ReasonRenewalFailed, "could not be renewed", "forbidden")
	restore()
	changes(t, 1, "the agent's certificate", certificate)
	labtest.Within(t, noticed, "the condition to recover", func() error {
		c, err := s.condition(ctx, v1alpha1.ConditionCertificateValid)
		if err == nil && c.Reason == v1alpha1.ReasonRenewalFailed {
			err = fmt.Errorf("it is %+v", c)
		}
		return err
	})
}

// TestRevokeThroughGateway revokes the certificates of an agent that only the gateway can reach:
// rotate needs no kubeconfig of the cluster for that, and the cluster answers afterwards.
func TestRevokeThroughGateway(t *testing.T) {
	exclusively(t, &shared.hubLock)
	ctx := bounded(t)
	s := begin(ctx, t)
	agents(t)
	agentBootstrap(ctx, t, registerArgs("--access", "impersonate")...)
	said := agentBootstrap(ctx, t, "rotate", clusterName, "--revoke")
	if !strings.Contains(said, "the previous certificates of the agent are refused") {
		t.Errorf("rotate printed\n%s", said)
	}
	registered, err := s.hubSecret(ctx, clusterName)
	if err != nil {
		t.Fatal(err)
	}
	issued := pki.IssuedAt(agentCertificate(ctx, t))
	if since := registration.AgentCertificatesSince(registered); !since.Equal(issued) {
		t.Errorf("certificates are accepted since %s, and the agent's was issued at %s", since, issued)
	}
}

// agentCertificate returns the certificate in the Secret of the agent.
func agentCertificate(ctx context.Context, t *testing.T) *x509.Certificate {
	t.Helper()
	secret, err := agentSecret(ctx)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := pki.ParseCertificates(secret.Data["tls.crt"])
	if err != nil {
		t.Fatal(err)
	}
	return chain[0]
}

// state is what agent-bootstrap and the gateway must agree on.
type state struct {
	certificate string
	generation  int64
}

func agentState(ctx context.Context) (state, error) {
	secret, err := agentSecret(ctx)
	if err != nil {
		return state{}, err
	}
	deployment, err := shared.edge.Client().AppsV1().Deployments(agentNamespace).Get(ctx, agentName, metav1.GetOptions{})
	if err != nil {
		return state{}, err
	}
	if roll, want := deployment.Spec.Template.Annotations[v1alpha1.AnnotationAgentCertificate], registration.AgentPairOf(secret).Hash(); roll != want {
		return state{}, fmt.Errorf("the Deployment's annotation is %s, and that of the Secret's pair is %s", roll, want)
	}
	return state{string(secret.Data["tls.crt"]), deployment.Generation}, nil
}

// TestAgentProcess checks that the gateway does not renew the certificate of an agent that runs as
// a process, and reports in time that it will expire.
func TestAgentProcess(t *testing.T) {
	exclusively(t, &shared.hubLock)
	ctx := bounded(t)
	s := begin(ctx, t)
	dir := t.TempDir()
	agentBootstrap(ctx, t, registerArgs("--out-dir", dir, "--certificate-lifetime", "60s", "--wait", "0")...)
	flags, err := os.ReadFile(filepath.Join(dir, "agent.flags"))
	if err != nil {
		t.Fatal(err)
	}
	agent, err := shared.lab.StartAgent(ctx, lab.AgentOptions{Name: "agent-process", Cluster: shared.edge, Args: strings.Fields(string(flags))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := agent.Kill(); err != nil {
			t.Error(err)
		}
	})
	s.waitForReason(ctx, t, v1alpha1.ConditionCertificateValid, v1alpha1.ReasonExpiresSoon, "the gateway cannot renew it", "agent-bootstrap rotate edge-1 --out-dir")
	end, err := s.Metric(ctx, "cluster_gateway_certificate_expiration_timestamp_seconds", `certificate="agent"`, `cluster="edge-1"`)
	if err != nil || end < float64(time.Now().Add(-time.Minute).Unix()) {
		t.Errorf("the metric of the agent's certificate is %v, %v", end, err)
	}
}

// TestOwnCA checks that the gateway never changes a CA that the user provides. When the user adds a
// CA to the bundle, agents get the new bundle and new certificates, also from a gateway that has
// the tunnel's certificates as files.
func TestOwnCA(t *testing.T) {
	exclusively(t, &shared.hubLock)
	ctx := bounded(t)
	s := begin(ctx, t)
	rolled := agents(t)
	agentBootstrap(ctx, t, registerArgs("--access", "impersonate", "--certificate-lifetime", "60s")...)
	next, err := lab.NewCA("next")
	if err != nil {
		t.Fatal(err)
	}
	own, err := s.hubSecret(ctx, pki.CASecret)
	if err != nil {
		t.Fatal(err)
	}
	bundle := slices.Concat(own.Data["ca.crt"], next.CertPEM())
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"labels": map[string]any{"app.kubernetes.io/managed-by": nil}}, "data": map[string][]byte{"ca.crt": bundle},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := shared.hub.Client().CoreV1().Secrets(hubNamespace).Patch(ctx, pki.CASecret, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	labtest.Within(t, noticed, "the agent to trust the next CA as well", func() error {
		secret, err := agentSecret(ctx)
		if err == nil && !bytes.Equal(secret.Data["ca.crt"], bundle) {
			err = fmt.Errorf("its bundle is %s", secret.Data["ca.crt"])
		}
		return err
	})

	serving, err := s.hubSecret(ctx, pki.ServingSecret)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, content := range map[string][]byte{"ca.crt": bundle, "tls.crt": serving.Data["tls.crt"], "tls.key": serving.Data["tls.key"]} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	g, err := shared.lab.StartGateway(ctx, lab.GatewayOptions{
		Name: "gateway-own-files", Hub: shared.hub, Binary: shared.binary, AgentsOf: shared.edge, ExtraArgs: []string{
			"--health-probe-interval=1s", fmt.Sprintf("--tunnel-port=%d", s.TunnelPort()), "--tunnel-client-ca-file=" + filepath.Join(dir, "ca.crt"),
			"--tunnel-cert-file=" + filepath.Join(dir, "tls.crt"), "--tunnel-private-key-file=" + filepath.Join(dir, "tls.key"),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Stop(); err != nil {
			t.Error(err)
		}
	})
	before := rolled.Rolls()
	changes(t, 1, "the agent's certificate", func() ([]byte, error) {
		secret, err := agentSecret(ctx)
		if err != nil {
			return nil, err
		}
		return secret.Data["tls.crt"], nil
	})
	labtest.Within(t, noticed, "the agent to be restarted", func() error {
		if n := rolled.Rolls() - before; n < 1 {
			return fmt.Errorf("it was restarted %d times", n)
		}
		return nil
	})
	if now, err := s.hubSecret(ctx, pki.CASecret); err != nil || !bytes.Equal(now.Data["tls.crt"], own.Data["tls.crt"]) || !bytes.Equal(now.Data["ca.crt"], bundle) {
		t.Errorf("the user's CA was changed (%v)", err)
	}
}
