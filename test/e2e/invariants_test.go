// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/oam-dev/cluster-gateway/test/lab"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

// The tests in this file cover the invariants that need a real cluster. The others are beside the
// code that guards them, in pkg/proxy, pkg/tunnel and pkg/cluster.

const namespacePath = "/api/v1/namespaces/default"

// TestWarmRequestDialsNothing checks that a warm request dials nothing and opens no connection.
func TestWarmRequestDialsNothing(t *testing.T) {
	forEachRoute(t, func(t *testing.T, r route) {
		client := newRawClient(t, r.gateway.ClusterRESTConfig(r.cluster, r.door))
		client.mustGet(t, namespacePath)
		label := fmt.Sprintf("cluster=%q", r.cluster)
		dials, open := metric(t, r.gateway, "cluster_gateway_dials_total", label), metric(t, r.gateway, "cluster_gateway_connections", label)
		if dials == 0 || open == 0 {
			t.Fatalf("the counters do not count: %v dials, %v connections", dials, open)
		}
		for range 50 {
			client.mustGet(t, namespacePath)
		}
		if now := metric(t, r.gateway, "cluster_gateway_dials_total", label); now != dials {
			t.Errorf("50 warm requests made %v dials", now-dials)
		}
		// It can fall: a connection of an earlier test may just be closed.
		if now := metric(t, r.gateway, "cluster_gateway_connections", label); now > open {
			t.Errorf("50 warm requests changed the number of open connections from %v to %v", open, now)
		}
	})
}

// TestNothingGrowsWithRequests checks that memory, goroutines and file descriptors do not grow with
// the number of requests served.
func TestNothingGrowsWithRequests(t *testing.T) {
	const (
		warmUp   = 100
		requests = 2000
		upgrades = 150
		slack    = 10 // far below both, so that a leak in every tenth upgrade already fails
	)
	for _, r := range shared.routes() {
		if r.door != lab.ViaOwnEndpoint {
			continue // through the hub, it is the same process and code, only slower
		}
		t.Run(r.name, func(t *testing.T) {
			runPod(t, r.target, "grows")
			client := newRawClient(t, r.gateway.ClusterRESTConfig(r.cluster, r.door))
			upgrader := newUpgrader(t, r)
			client.parallelGets(t, namespacePath, warmUp, 8)
			upgrader.echo(t, 5)
			fds, goroutines := settled(t, r.gateway, 0, 0)

			client.parallelGets(t, namespacePath, requests, 8)
			upgrader.echo(t, upgrades)
			nowFDs, nowGoroutines := settled(t, r.gateway, fds+slack, goroutines+slack)
			t.Logf("descriptors %d → %d, goroutines %d → %d", fds, nowFDs, goroutines, nowGoroutines)
			if nowFDs > fds+slack || nowGoroutines > goroutines+slack {
				t.Errorf("after %d requests and %d upgrades: descriptors %d → %d, goroutines %d → %d", requests, upgrades, fds, nowFDs, goroutines, nowGoroutines)
			}
		})
	}
}

// settled returns the descriptors and goroutines of a gateway once they are at most the given ones,
// or have not changed for a second, or after ten seconds.
func settled(t *testing.T, g *lab.Gateway, maxFDs, maxGoroutines int) (fds, goroutines int) {
	t.Helper()
	same := 0
	_ = wait.PollUntilContextTimeout(t.Context(), 250*time.Millisecond, 10*time.Second, true, func(context.Context) (bool, error) {
		f, n := descriptors(t, g.Process), int(metric(t, g, "go_goroutines"))
		if f == fds && n == goroutines {
			same++
		} else {
			same = 0
		}
		fds, goroutines = f, n
		return fds <= maxFDs && goroutines <= maxGoroutines || same >= 4 && maxFDs == 0, nil
	}) // the caller checks what is left after the timeout
	return fds, goroutines
}

// TestPausedReaderDelaysNobody checks that a client which has stopped reading delays no other
// request to its cluster.
func TestPausedReaderDelaysNobody(t *testing.T) {
	for i, r := range shared.routes() {
		if r.cluster == "direct" {
			continue
		}
		t.Run(r.name, func(t *testing.T) {
			runPod(t, r.target, "paused")
			kubeconfig, err := r.gateway.ClusterKubeconfig(r.cluster, r.door)
			if err != nil {
				t.Fatal(err)
			}
			client := newRawClient(t, r.gateway.ClusterRESTConfig(r.cluster, r.door))
			client.medianGet(t, namespacePath, 20) // warm
			before := client.medianGet(t, namespacePath, 100)

			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			program := []string{"head", "-c", strconv.Itoa(200_000_000 + i), "/dev/zero"} // another one for each route
			cmd := exec.CommandContext(ctx, shared.lab.Binaries().Kubectl, append([]string{"--kubeconfig", kubeconfig, "exec", "paused", "--"}, program...)...)
			out, err := cmd.StdoutPipe() // a pipe of 64 KiB, of which only the first byte is read
			if err != nil {
				t.Fatal(err)
			}
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(out, make([]byte, 1)); err != nil {
				t.Fatalf("%v: %s", err, stderr.String())
			}
			// While the bytes arrive, they compete for the processors like any download. The test
			// measures after that.
			t.Logf("while the bytes arrive: %s", client.medianGet(t, namespacePath, 50))
			// Only the embedded server can slow the sender down. With a stock server, the connection is
			// closed when its buffer is full.
			if r.gateway == shared.external {
				eventually(t, labtest.Timeout, func(context.Context) error {
					if runs(t, program) {
						return errors.New("the connection of the paused reader has not reached its limit yet: the process still writes")
					}
					return nil
				})
			} else if !runs(t, program) {
				t.Error("the process was not slowed down: it has ended")
			}
			// A reader that blocks others does so permanently. A machine that is busy with
			// something else does not.
			labtest.Within(t, labtest.Timeout, "GETs beside a paused reader to be as fast as without it", func() error {
				after := client.medianGet(t, namespacePath, 100)
				t.Logf("median GET: before %s, after %s", before, after)
				if after > 2*before+2*time.Millisecond {
					return fmt.Errorf("the median went from %s to %s", before, after)
				}
				return nil
			})
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait() // killed
		})
	}
}

// runs reports whether a process with this command line runs, in a Pod or elsewhere.
func runs(t *testing.T, program []string) bool {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(files, func(file string) bool {
		got, err := os.ReadFile(file) // an error: it has just ended
		return err == nil && string(got) == strings.Join(program, "\x00")+"\x00"
	})
}

// TestAgentCannotClaimAnotherCluster checks that an agent with a certificate for one cluster gets
// no traffic of another cluster that it claims to serve.
func TestAgentCannotClaimAnotherCluster(t *testing.T) {
	ctx := t.Context()
	g := shared.embedded
	for _, name := range []string{"victim", "impostor"} {
		if err := g.RegisterCluster(ctx, name, shared.direct, true); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := shared.embeddedHub.DeleteSecret(context.WithoutCancel(ctx), name); err != nil {
				t.Error(err)
			}
		})
	}
	o, err := g.AgentOptions("impostor", shared.direct)
	if err != nil {
		t.Fatal(err)
	}
	o.Name = "agent-impostor"
	o.Identifiers = []string{"host=victim", "host=edge", "default-route=true"}
	o.ExtraArgs = []string{"--agent-id=victim"}
	agent, err := shared.lab.StartAgent(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := agent.Kill(); err != nil {
			t.Error(err)
		}
	})
	if err := agent.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	impostor := newRawClient(t, g.ClusterRESTConfig("impostor", lab.ViaOwnEndpoint))
	eventually(t, labtest.Timeout, func(ctx context.Context) error {
		if a, err := impostor.get(ctx, namespacePath); err != nil || a.code != http.StatusOK {
			return fmt.Errorf("the agent does not even serve its own cluster: %d %s (%v)", a.code, a.body, err)
		}
		return nil
	})
	victim := newRawClient(t, g.ClusterRESTConfig("victim", lab.ViaOwnEndpoint))
	for range 20 {
		a, err := victim.get(ctx, namespacePath)
		if err != nil || a.code != http.StatusServiceUnavailable || !strings.Contains(a.body, "no agent is connected") {
			t.Fatalf("a request for the victim: %d %s (%v)", a.code, a.body, err)
		}
	}
	if n := metric(t, g, "cluster_gateway_tunnel_agents", `cluster="victim"`); n != 0 {
		t.Errorf("the impostor counts as %v agents of the victim", n)
	}
}

// TestTunnelIsNeverBypassed checks that a cluster with a tunnel is not reached without an agent,
// even if the gateway could dial it.
func TestTunnelIsNeverBypassed(t *testing.T) {
	for _, g := range []*lab.Gateway{shared.embedded, shared.external} {
		t.Run(g.Name(), func(t *testing.T) {
			t.Parallel() // kubectl repeats the request for some seconds
			ctx := t.Context()
			if err := g.RegisterCluster(ctx, "agentless", shared.direct, true); err != nil {
				t.Fatal(err)
			}
			runPod(t, shared.direct, "bypass")
			hub := shared.embeddedHub
			if g == shared.external {
				hub = shared.externalHub
			}
			t.Cleanup(func() {
				if err := hub.DeleteSecret(context.WithoutCancel(ctx), "agentless"); err != nil {
					t.Error(err)
				}
			})
			client := newRawClient(t, g.ClusterRESTConfig("agentless", lab.ViaOwnEndpoint))
			eventually(t, labtest.Timeout, func(ctx context.Context) error {
				a, err := client.get(ctx, namespacePath)
				if err != nil || a.code != http.StatusServiceUnavailable {
					return fmt.Errorf("%d %s (%v)", a.code, a.body, err)
				}
				return nil
			})
			kubeconfig, err := g.ClusterKubeconfig("agentless", lab.ViaOwnEndpoint)
			if err != nil {
				t.Fatal(err)
			}
			out, err := exec.CommandContext(ctx, shared.lab.Binaries().Kubectl, "--kubeconfig", kubeconfig, "exec", "bypass", "--", "echo", "through").CombinedOutput()
			if err == nil || bytes.Contains(out, []byte("through\n")) {
				t.Errorf("exec bypassed the tunnel: %s", out)
			}
			if n := metric(t, g, "cluster_gateway_dials_total", `cluster="agentless"`, `result="success"`); n != 0 {
				t.Errorf("%v dials succeeded without an agent", n)
			}
		})
	}
}

// garbage returns an invalid value for each key of a Secret. The message must name the key.
func garbage() map[string]map[string][]byte {
	noise := bytes.Repeat([]byte("\x00\xff{noise}\n"), (900<<10)/10)
	return map[string]map[string][]byte{
		"endpoint": {"endpoint": []byte("api.example.com:6443")},
		"ca.crt":   {"ca.crt": shared.direct.CAPEM()[:200]},
		"token":    {"token": []byte("two\nlines")},
		"tls.key":  {"tls.crt": shared.direct.AdminCertPEM(), "tls.key": shared.edge.AdminKeyPEM(), "token": nil},
		"exec":     {"exec": []byte(`{"command": "/bin/true"`), "token": nil},
		"noise":    {"ca.crt": noise},
	}
}

// TestGarbageInSecrets checks that an invalid Secret is served as Ready=False with a message that
// names the key, and affects no other cluster.
func TestGarbageInSecrets(t *testing.T) {
	ctx := t.Context()
	types := map[string]string{"tls.key": "X509Certificate", "exec": "Dynamic"}
	for key, data := range garbage() {
		t.Run(key, func(t *testing.T) {
			name := "garbage-" + strings.ReplaceAll(key, ".", "-")
			secret := map[string][]byte{"endpoint": []byte(shared.direct.Endpoint()), "ca.crt": shared.direct.CAPEM(), "token": []byte("t")}
			for k, v := range data {
				secret[k] = v
				if v == nil {
					delete(secret, k)
				}
			}
			if err := shared.embeddedHub.ApplySecret(ctx, lab.SecretOptions{Name: name, CredentialType: types[key], Data: secret}); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := shared.embeddedHub.DeleteSecret(context.WithoutCancel(ctx), name); err != nil {
					t.Error(err)
				}
			})
			named := key
			if key == "noise" {
				named = "ca.crt"
			}
			config := shared.embedded.RESTConfig(lab.ViaHub)
			api := newRawClient(t, config)
			got := api.mustGet(t, "/apis/cluster.core.oam.dev/v1alpha1/clustergateways/"+name).body
			if !strings.Contains(got, `"InvalidSecret"`) || !strings.Contains(got, `"False"`) || !strings.Contains(got, named) {
				t.Errorf("no Ready=False that names %s: %.2000s", named, got)
			}
			cluster := newRawClient(t, shared.embedded.ClusterRESTConfig(name, lab.ViaHub))
			eventually(t, labtest.Timeout, func(ctx context.Context) error {
				a, err := cluster.get(ctx, namespacePath)
				if err != nil || a.code != http.StatusServiceUnavailable || !strings.Contains(a.body, named) {
					return fmt.Errorf("%d %s (%v)", a.code, a.body, err)
				}
				return nil
			})
			healthy := newRawClient(t, shared.embedded.ClusterRESTConfig("direct", lab.ViaHub))
			healthy.mustGet(t, namespacePath)
		})
	}
}

// TestNoCredentialIsShown checks that no credential of the run appears in what the API serves, in a
// log at the highest verbosity, or in a metric.
func TestNoCredentialIsShown(t *testing.T) {
	ctx := t.Context()
	g, hub := shared.embedded, shared.embeddedHub
	// One cluster with each kind of credential, and a caller with a token of the hub.
	cert, key, err := shared.direct.ClientCertificate("x509-user", "system:masters")
	if err != nil {
		t.Fatal(err)
	}
	if err := hub.ApplySecret(ctx, lab.SecretOptions{Name: "x509", CredentialType: "X509Certificate", Data: map[string][]byte{
		"endpoint": []byte(shared.direct.Endpoint()), "ca.crt": shared.direct.CAPEM(), "tls.crt": cert, "tls.key": key,
	}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := hub.DeleteSecret(context.WithoutCancel(ctx), "x509"); err != nil {
			t.Error(err)
		}
	})
	callerToken, err := hub.ServiceAccountToken(ctx, "default", "caller", "cluster-admin")
	if err != nil {
		t.Fatal(err)
	}
	caller := g.ClusterRESTConfig("x509", lab.ViaOwnEndpoint)
	caller.CertData, caller.KeyData, caller.BearerToken = nil, nil, callerToken
	eventually(t, labtest.Timeout, func(ctx context.Context) error {
		client := newRawClient(t, caller)
		if a, err := client.get(ctx, namespacePath); err != nil || a.code != http.StatusOK {
			return fmt.Errorf("%d %s (%v)", a.code, a.body, err)
		}
		return nil
	})
	secrets := secretsOf(t, map[string]string{"caller's token": callerToken, "x509 key": string(key)})

	served := map[string][]byte{}
	kubectl := func(name string, args ...string) {
		kubeconfig := filepath.Join(t.TempDir(), "hub.kubeconfig")
		if err := os.WriteFile(kubeconfig, mustRead(t, hub.Kubeconfig()), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.CommandContext(ctx, shared.lab.Binaries().Kubectl, append([]string{"--kubeconfig", kubeconfig}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		served["kubectl "+name] = out
	}
	kubectl("yaml", "get", "clustergateways", "-o", "yaml", "--show-managed-fields")
	kubectl("wide", "get", "clustergateways", "-o", "wide")
	kubectl("describe", "describe", "clustergateways")
	kubectl("health", "get", "--raw", "/apis/cluster.core.oam.dev/v1alpha1/clustergateways/x509/health")
	kubectl("error", "get", "--raw", "/apis/cluster.core.oam.dev/v1alpha1/clustergateways?labelSelector=cluster.core.oam.dev/cluster-credential-type")
	for _, gateway := range []*lab.Gateway{shared.embedded, shared.external} {
		metrics, err := gateway.Metrics(ctx)
		if err != nil {
			t.Fatal(err)
		}
		served["metrics of "+gateway.Name()] = metrics
		served["log of "+gateway.Name()] = mustRead(t, gateway.LogFile())
	}
	for where, text := range served {
		if len(text) == 0 {
			t.Errorf("%s is empty: nothing was scanned", where)
		}
		for what, secret := range secrets {
			if bytes.Contains(text, []byte(secret)) {
				t.Errorf("the %s is in the %s", what, where)
			}
		}
	}
}

// secretsOf returns every credential in the hubs' cluster Secrets and the given ones, plain and in
// base64. For keys, it also returns a line from the middle.
func secretsOf(t *testing.T, more map[string]string) map[string]string {
	t.Helper()
	plain := map[string]string{}
	for _, hub := range []*lab.Cluster{shared.embeddedHub, shared.externalHub} {
		list, err := hub.Client().CoreV1().Secrets("cluster-gateway-system").List(t.Context(), metav1.ListOptions{LabelSelector: "cluster.core.oam.dev/cluster-credential-type"})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range list.Items {
			for _, key := range []string{"token", "tls.key"} {
				if len(s.Data[key]) > 20 {
					plain[hub.Name()+"/"+s.Name+" "+key] = string(s.Data[key])
				}
			}
		}
	}
	for name, value := range more {
		plain[name] = value
	}
	all := map[string]string{}
	for name, value := range plain {
		all[name] = value
		all[name+" in base64"] = base64.StdEncoding.EncodeToString([]byte(value))
		if lines := strings.Split(strings.TrimSpace(value), "\n"); len(lines) > 2 {
			all[name+" (a line)"] = lines[len(lines)/2]
		}
		if parts := strings.Split(value, "."); len(parts) == 3 {
			all[name+" (signature)"] = parts[2]
		}
	}
	return all
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
