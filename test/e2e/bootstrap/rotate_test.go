// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/oam-dev/cluster-gateway/pkg/bootstrap"
	"github.com/oam-dev/cluster-gateway/pkg/pki"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

// TestRotateThroughGateway gives a cluster new credentials through the gateway, although users
// may do nothing there. It also checks that every rule for this in the manifest is needed.
func TestRotateThroughGateway(t *testing.T) {
	ctx := begin(t)
	started := kubelet(ctx, t)
	must(ctx, t, edgeArgs("--access", "impersonate", "--wait", "1m")...)
	agent := <-started

	secrets := shared.hub.Client().CoreV1().Secrets(hubNamespace)
	before, err := secrets.Get(ctx, "edge-1", noOptions)
	if err != nil {
		t.Fatal(err)
	}
	certBefore, rollBefore := agentState(ctx, t)
	must(ctx, t, "rotate", "edge-1")
	after, err := secrets.Get(ctx, "edge-1", noOptions)
	if err != nil {
		t.Fatal(err)
	}
	certAfter, rollAfter := agentState(ctx, t)
	if bytes.Equal(before.Data["token"], after.Data["token"]) {
		t.Error("the token is the same")
	}
	if bytes.Equal(certBefore, certAfter) || rollBefore == rollAfter {
		t.Errorf("the certificate is the same, or the agent was not restarted: %s, %s", rollBefore, rollAfter)
	}
	// The restarted agent is accepted.
	if err := agent.Kill(); err != nil {
		t.Fatal(err)
	}
	rolled, err := shared.lab.StartAgentPod(ctx, shared.edge, agentNamespace, "konnectivity-agent", "rolled")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = rolled.Kill() })
	if err := rolled.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	reachable(ctx, t)
	// register changes nothing, and does not restart the agent. The first time, it takes ownership
	// of what rotate wrote.
	if _, steps := must(ctx, t, edgeArgs("--access", "impersonate", "--wait", "1m")...); regexp.MustCompile(`\b(created|changed)\b`).MatchString(steps) {
		t.Errorf("register changed something:\n%s", steps)
	}
	hub, edge := dump(ctx, t, shared.hub), dump(ctx, t, shared.edge)
	must(ctx, t, edgeArgs("--access", "impersonate", "--wait", "1m")...)
	same(t, "the hub", hub, dump(ctx, t, shared.hub))
	same(t, "the cluster", edge, dump(ctx, t, shared.edge))
	if cert, roll := agentState(ctx, t); roll != rollAfter || !bytes.Equal(cert, certAfter) {
		t.Error("register restarted the agent again")
	}
	// A new address of the tunnel restarts it.
	generation := func() int64 {
		d, err := shared.edge.Client().AppsV1().Deployments(agentNamespace).Get(ctx, "konnectivity-agent", noOptions)
		if err != nil {
			t.Fatal(err)
		}
		return d.Generation
	}
	rolledAt := generation()
	must(ctx, t, edgeArgs("--access", "impersonate", "--wait", "0", "--tunnel-address", "elsewhere.example.com:8132")...)
	if generation() == rolledAt {
		t.Error("the agent was not restarted for its new address")
	}
	must(ctx, t, edgeArgs("--access", "impersonate", "--wait", "0")...)
	withoutEachRule(ctx, t)
}

// TestRotateLifetimes checks that rotate keeps the lifetimes of the previous credentials unless a
// flag changes them.
func TestRotateLifetimes(t *testing.T) {
	ctx := begin(t)
	rotate := []string{"rotate", "edge-1", "--cluster-kubeconfig", shared.edgeFile, "--wait", "0"}
	dir := filepath.Join(t.TempDir(), "agent")
	for _, form := range []struct {
		name        string
		args        []string
		certificate func() []byte
	}{
		{"Pods", nil, func() []byte { cert, _ := agentState(ctx, t); return cert }},
		{"process", []string{"--out-dir", dir}, func() []byte { return must2(os.ReadFile(filepath.Join(dir, "tls.crt"))) }},
	} {
		t.Run(form.name, func(t *testing.T) {
			must(ctx, t, edgeArgs(append(form.args, "--wait", "0", "--token-lifetime", "24h", "--certificate-lifetime", "100h")...)...)
			if form.name != "Pods" { // the previous token is still valid
				must(ctx, t, append(append(rotate, form.args...), "--token-lifetime", "24h")...)
			}
			before := form.certificate()
			must(ctx, t, append(rotate, form.args...)...)
			after := form.certificate()
			if bytes.Equal(before, after) {
				t.Error("the certificate is the same")
			}
			token, certificate := lifetimes(ctx, t, after)
			if token != 24*time.Hour || certificate < 99*time.Hour || certificate > 101*time.Hour {
				t.Errorf("the lifetime of the token is %s, that of the certificate %s", token, certificate)
			}
			must(ctx, t, append(append(rotate, form.args...), "--token-lifetime", "2h", "--certificate-lifetime", "3h")...)
			token, certificate = lifetimes(ctx, t, form.certificate())
			if token != 2*time.Hour || certificate < 2*time.Hour || certificate > 4*time.Hour {
				t.Errorf("with flags, the lifetime of the token is %s, that of the certificate %s", token, certificate)
			}
		})
	}
	_, _, err := invoke(ctx, bootstrap.Config{}, append(rotate, "--token-lifetime", "1m")...)
	if err == nil || !strings.Contains(err.Error(), "must be at least 10m0s") {
		t.Errorf("a token of a minute: %v", err)
	}
}

// lifetimes returns the lifetimes of the gateway's token for the firewalled cluster and of a
// certificate.
func lifetimes(ctx context.Context, t *testing.T, certPEM []byte) (token, certificate time.Duration) {
	t.Helper()
	secret, err := shared.hub.Client().CoreV1().Secrets(hubNamespace).Get(ctx, "edge-1", noOptions)
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(string(secret.Data["token"]), ".")
	if len(parts) != 3 {
		t.Fatalf("the token has %d parts", len(parts))
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	var claims struct{ Iat, Exp int64 }
	if err := json.Unmarshal(payload, &claims); err != nil {
		t.Fatal(err)
	}
	chain, err := pki.ParseCertificates(certPEM)
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(claims.Exp-claims.Iat) * time.Second, pki.Lifetime(chain[0])
}

// agentState returns the agent's certificate, and the annotation whose change restarts its Pods.
func agentState(ctx context.Context, t *testing.T) (cert []byte, roll string) {
	t.Helper()
	secret, err := shared.edge.Client().CoreV1().Secrets(agentNamespace).Get(ctx, "konnectivity-agent", noOptions)
	if err != nil {
		t.Fatal(err)
	}
	deployment, err := shared.edge.Client().AppsV1().Deployments(agentNamespace).Get(ctx, "konnectivity-agent", noOptions)
	if err != nil {
		t.Fatal(err)
	}
	return secret.Data["tls.crt"], deployment.Spec.Template.Annotations["cluster.core.oam.dev/agent-certificate"]
}

func reachable(ctx context.Context, t *testing.T) {
	t.Helper()
	labtest.Within(t, labtest.Timeout, "the cluster to respond", func() error {
		_, _, err := invoke(ctx, bootstrap.Config{}, "doctor", "edge-1")
		return err
	})
}

// withoutEachRule removes each verb of each rule from the gateway's Role in turn, and checks that
// something then fails.
func withoutEachRule(ctx context.Context, t *testing.T) {
	roles := shared.edge.Client().RbacV1().Roles(agentNamespace)
	whole, err := roles.Get(ctx, "cluster-gateway-maintenance", noOptions)
	if err != nil {
		t.Fatal(err)
	}
	for i, rule := range whole.Rules {
		if slices.Contains([]string{"configmaps", "roles"}, rule.Resources[0]) {
			continue // not for this: they are for the upkeep of clusters (pkg/rotation, TestFollowCA and TestSeparateCredentials)
		}
		for _, verb := range rule.Verbs {
			t.Run(fmt.Sprintf("without %s %s", verb, rule.Resources[0]), func(t *testing.T) {
				role := whole.DeepCopy()
				role.ResourceVersion = ""
				role.Rules[i].Verbs = slices.DeleteFunc(role.Rules[i].Verbs, func(v string) bool { return v == verb })
				if len(role.Rules[i].Verbs) == 0 {
					role.Rules = slices.Delete(role.Rules, i, i+1)
				}
				if _, err := roles.Update(ctx, role, metav1.UpdateOptions{}); err != nil {
					t.Fatal(err)
				}
				labtest.Within(t, labtest.Timeout, "something to fail", func() error {
					if works(ctx) {
						return fmt.Errorf("rotate still does")
					}
					return nil
				})
			})
		}
	}
	if _, _, err := invoke(ctx, bootstrap.Config{}, edgeArgs("--access", "impersonate", "--wait", "0")...); err != nil {
		t.Fatal(err)
	}
	labtest.Within(t, labtest.Timeout, "everything to work again", func() error {
		if !works(ctx) {
			return fmt.Errorf("it does not")
		}
		return nil
	})
}

// works reports whether the gateway can do in the cluster what its Role is for: renew its tokens
// and the agent's certificate.
func works(ctx context.Context) bool {
	_, _, err := invoke(ctx, bootstrap.Config{}, "rotate", "edge-1")
	return err == nil
}
