// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/oam-dev/cluster-gateway/pkg/bootstrap"
	"github.com/oam-dev/cluster-gateway/test/lab"
	"github.com/oam-dev/cluster-gateway/test/lab/bootstraptest"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

// TestDoctor breaks the path to a cluster at each of its stages. Each time, doctor names the stage.
func TestDoctor(t *testing.T) {
	ctx := begin(t)
	edge := shared.edge
	dir := filepath.Join(t.TempDir(), "agent")
	register := edgeArgs("--out-dir", dir, "--wait", "0")
	must(ctx, t, register...)
	agent := startProcess(ctx, t, dir, "doctor-agent")
	must(ctx, t, edgeArgs("--out-dir", dir)...)
	expect(ctx, t, "", "--out-dir", dir)
	expect(ctx, t, "", "--cluster-kubeconfig", shared.edgeFile)
	expect(ctx, t, "")

	// broken runs doctor while something is broken. Then it checks that another register repairs it.
	broken := func(name string, want bootstrap.Stage, breakIt func(t *testing.T) (mend func()), more ...string) {
		t.Run(name, func(t *testing.T) {
			mend := breakIt(t)
			expect(ctx, t, want, more...)
			expect(ctx, t, want, append(more, "--out-dir", dir)...)
			if mend != nil {
				mend()
			}
			must(ctx, t, edgeArgs("--out-dir", dir)...)
			expect(ctx, t, "", "--out-dir", dir)
		})
	}
	broken("Secret missing a key", bootstrap.StageSecret, func(t *testing.T) func() {
		bootstraptest.PatchSecret(ctx, t, shared.hub, "edge-1", `{"data":{"token":null}}`)
		return nil
	})
	broken("no Secret", bootstrap.StageSecret, func(*testing.T) func() {
		if err := shared.hub.DeleteSecret(ctx, "edge-1"); err != nil {
			t.Fatal(err)
		}
		return func() {
			// This is another registration, so the agent gets another certificate.
			must(ctx, t, register...)
			if err := agent.Kill(); err != nil {
				t.Fatal(err)
			}
			agent = startProcess(ctx, t, dir, "doctor-agent-again") // for the next cases, too
		}
	})
	broken("wrong CA", bootstrap.StageTLS, func(t *testing.T) func() {
		bootstraptest.PatchSecret(ctx, t, shared.hub, "edge-1", fmt.Sprintf(`{"data":{"ca.crt":%s}}`, jsonBytes(t, shared.hub.CAPEM())))
		return nil
	})
	broken("revoked token", bootstrap.StageCredential, func(t *testing.T) func() {
		accounts := edge.Client().CoreV1().ServiceAccounts(agentNamespace)
		if err := accounts.Delete(ctx, "cluster-gateway", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		// The API server accepts a token for some seconds after its ServiceAccount was deleted.
		labtest.Within(t, labtest.Timeout, "the token is revoked", func() error {
			if got := diagnose(ctx, t).Broken; got != bootstrap.StageCredential {
				return fmt.Errorf("doctor reports %q", got)
			}
			return nil
		})
		return nil
	})
	broken("RBAC missing", bootstrap.StageRBAC, func(t *testing.T) func() {
		if err := edge.Client().RbacV1().ClusterRoleBindings().Delete(ctx, "cluster-gateway-agent:access:cluster-admin", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		return nil
	})
	broken("API server down", bootstrap.StageDial, func(t *testing.T) func() {
		if err := edge.StopAPIServer(); err != nil {
			t.Fatal(err)
		}
		return func() {
			if err := edge.StartAPIServer(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}, "--cluster-kubeconfig", shared.edgeFile)
	t.Run("firewall that drops the agent's dial", func(t *testing.T) {
		if !edge.Firewalled() {
			t.Skipf("there is no firewall: %v", edge.FirewallSkipped())
		}
		port, err := shared.lab.FreePort()
		if err != nil {
			t.Fatal(err)
		}
		if err := edge.DropOutbound(port); err != nil {
			t.Fatal(err)
		}
		endpoint := "https://" + net.JoinHostPort(edge.Address(), strconv.Itoa(port))
		bootstraptest.PatchSecret(ctx, t, shared.hub, "edge-1", fmt.Sprintf(`{"data":{"endpoint":%s}}`, jsonBytes(t, []byte(endpoint))))
		expect(ctx, t, bootstrap.StageDial, "--out-dir", dir, "--cluster-kubeconfig", shared.edgeFile)
		must(ctx, t, edgeArgs("--out-dir", dir)...)
	})
	t.Run("agent not running", func(t *testing.T) {
		if err := agent.Kill(); err != nil {
			t.Fatal(err)
		}
		expect(ctx, t, bootstrap.StageAgent)
		expect(ctx, t, bootstrap.StageAgent, "--out-dir", dir)
		expect(ctx, t, bootstrap.StageAgent, "--cluster-kubeconfig", shared.edgeFile)
	})
	t.Run("agent with a certificate of an unknown CA", func(t *testing.T) {
		for name, options := range map[string]lab.CertOptions{
			"CA":      {CN: "edge-1", Orgs: []string{"cluster.core.oam.dev:tunnel-agents"}},
			"cluster": {CN: "edge-2", Orgs: []string{"cluster.core.oam.dev:tunnel-agents"}},
		} {
			ca := shared.gateway.TunnelCA()
			if name == "CA" {
				var err error
				if ca, err = lab.NewCA("unknown"); err != nil {
					t.Fatal(err)
				}
			}
			pair, err := ca.Issue(options)
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := pair.WriteFiles(dir, "tls"); err != nil {
				t.Fatal(err)
			}
			unknown := startProcess(ctx, t, dir, "unknown-"+name)
			expect(ctx, t, bootstrap.StageCertificate, "--out-dir", dir)
			if err := unknown.Kill(); err != nil {
				t.Fatal(err)
			}
		}
		must(ctx, t, register...) // issues a new certificate
		startProcess(ctx, t, dir, "doctor-agent-again")
		must(ctx, t, edgeArgs("--out-dir", dir)...)
		expect(ctx, t, "", "--out-dir", dir)
	})
}

func diagnose(ctx context.Context, t *testing.T, more ...string) bootstrap.Diagnosis {
	t.Helper()
	out, said, err := invoke(ctx, bootstrap.Config{}, append([]string{"doctor", "edge-1", "-o", "json"}, more...)...)
	var d bootstrap.Diagnosis
	if jsonErr := json.Unmarshal([]byte(out), &d); jsonErr != nil {
		t.Fatalf("doctor: %v, %v\n%s%s", err, jsonErr, said, out)
	}
	if (err != nil) != (d.Broken != "") {
		t.Errorf("doctor reports that %q is broken, and fails with %v", d.Broken, err)
	}
	return d
}

// expect checks which stage doctor reports as broken, and that it reports what to do.
func expect(ctx context.Context, t *testing.T, want bootstrap.Stage, more ...string) {
	t.Helper()
	d := diagnose(ctx, t, more...)
	if d.Broken != want {
		t.Errorf("doctor %v: %q is broken, want %q: %+v", more, d.Broken, want, d.Findings)
		return
	}
	for _, f := range d.Findings {
		if f.Stage == want && want != "" {
			t.Logf("%s: %s -> %s", f.Stage, f.Message, f.Advice)
			if f.Message == "" || f.Advice == "" {
				t.Errorf("doctor %v does not report what is wrong with %q and what to do: %+v", more, want, f)
			}
		}
	}
}

func jsonBytes(t *testing.T, data []byte) string {
	t.Helper()
	out, err := json.Marshal(data)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}
