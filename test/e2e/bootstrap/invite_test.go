// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/bootstrap"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
	"github.com/oam-dev/cluster-gateway/test/lab"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

// invite makes an invitation, and returns the file and the name of the Job in it.
func invite(ctx context.Context, t *testing.T, args ...string) (file, job string) {
	t.Helper()
	if !shared.edge.Firewalled() {
		t.Skip("an agent that knows the API server as kubernetes.default.svc:443 needs a network namespace, and that needs root")
	}
	out, _ := must(ctx, t, append([]string{"invite"}, args...)...)
	file = filepath.Join(t.TempDir(), "invite.yaml")
	if err := os.WriteFile(file, []byte(out), 0o600); err != nil {
		t.Fatal(err)
	}
	return file, regexp.MustCompile(`konnectivity-agent-enrol-[0-9a-f]{8}`).FindString(out)
}

// apply applies an invitation as whoever has the cluster's kubeconfig would.
func apply(ctx context.Context, t *testing.T, c *lab.Cluster, file string) (said string) {
	t.Helper()
	out, err := c.Kubectl(ctx, "apply", "--validate=strict", "-f", file).CombinedOutput()
	if err != nil {
		t.Fatalf("kubectl apply: %v\n%s", err, out)
	}
	return string(out)
}

// enrol applies an invitation and runs its Job until the test ends.
func enrol(ctx context.Context, t *testing.T, c *lab.Cluster, file, job string) *lab.Agent {
	t.Helper()
	apply(ctx, t, c, file)
	var agent *lab.Agent
	labtest.Within(t, time.Minute, "the Job", func() (err error) { // the cluster's CA is written by a controller
		agent, err = shared.lab.StartAgentJob(ctx, c, agentNamespace, job, "enrol-"+strings.ReplaceAll(t.Name(), "/", "-")+"-"+strconv.FormatInt(time.Now().UnixNano(), 36))
		return err
	})
	t.Cleanup(func() { _ = agent.Kill() }) // it may be dead already
	return agent
}

func ready(ctx context.Context, name string) error {
	out, said, err := invoke(ctx, bootstrap.Config{}, "status", name, "-o", "json")
	if err != nil {
		return fmt.Errorf("%w %s", err, said)
	}
	return isReady(out)
}

// TestInvite registers a cluster behind a firewall by a file that is applied to it, with no way from there to the hub but the tunnel port.
func TestInvite(t *testing.T) {
	ctx := begin(t)
	hubBefore, edgeBefore := dump(ctx, t, shared.hub), dump(ctx, t, shared.edge)
	file, job := invite(ctx, t, "edge-1")
	cutOff(ctx, t)

	kubelet(ctx, t)
	began := time.Now()
	enrolAgent := enrol(ctx, t, shared.edge, file, job)
	labtest.Within(t, time.Minute, "Ready", func() error { return ready(ctx, "edge-1") })
	t.Logf("Ready %s after kubectl apply began", time.Since(began).Round(time.Millisecond))

	path := filepath.Join(t.TempDir(), "edge-1.kubeconfig")
	must(ctx, t, "kubeconfig", "edge-1", "-o", path)
	kubectl(ctx, t, path, "create", "configmap", "from-the-hub", "--from-literal=a=b")
	if err := shared.edge.Client().CoreV1().ConfigMaps("default").Delete(ctx, "from-the-hub", metav1.DeleteOptions{}); err != nil {
		t.Errorf("what was created through the gateway is not in the cluster: %v", err)
	}

	// Nothing of the enrolment stays.
	labtest.Within(t, time.Minute, "the enrolment is gone", func() error {
		if _, err := shared.edge.Client().BatchV1().Jobs(agentNamespace).Get(ctx, job, noOptions); !apierrors.IsNotFound(err) {
			return fmt.Errorf("the Job: %w", errors.Join(err, errors.New("still there")))
		}
		for name := range dump(ctx, t, shared.edge) {
			if strings.Contains(name, "enrol") {
				return errors.New(name)
			}
		}
		return nil
	})
	if err := enrolAgent.Kill(); err != nil {
		t.Error(err)
	}
	out, _ := must(ctx, t, "list")
	if !strings.Contains(out, "edge-1") || strings.Contains(out, "INVITATION") {
		t.Errorf("list says\n%s", out)
	}
	must(ctx, t, "doctor", "edge-1")

	// It is the same registration as register's: that finds everything done.
	hubOnce, edgeOnce := dump(ctx, t, shared.hub), dump(ctx, t, shared.edge)
	_, said := must(ctx, t, edgeArgs("--wait", "1m")...)
	if strings.Contains(said, "created") || strings.Contains(said, "changed") && !strings.Contains(said, "unchanged") {
		t.Errorf("register finds something to do:\n%s", said)
	}
	sameNames(t, "the hub, after registering what was invited", hubOnce, dump(ctx, t, shared.hub))
	sameNames(t, "the cluster, after registering what was invited", edgeOnce, dump(ctx, t, shared.edge))

	must(ctx, t, "unregister", "edge-1", "--cluster-kubeconfig", shared.edgeFile)
	sameNames(t, "the hub, after unregistering", hubBefore, dump(ctx, t, shared.hub))
	sameNames(t, "the cluster, after unregistering", edgeBefore, dump(ctx, t, shared.edge))
}

// cutOff shows that the hub's API cannot be reached from where the cluster is, and that the tunnel port can.
func cutOff(ctx context.Context, t *testing.T) {
	t.Helper()
	_, port, err := net.SplitHostPort(strings.TrimPrefix(shared.hub.Endpoint(), "https://"))
	if err != nil {
		t.Fatal(err)
	}
	_, gatewayPort, err := net.SplitHostPort(strings.TrimPrefix(shared.gateway.Endpoint(), "https://"))
	if err != nil {
		t.Fatal(err)
	}
	host := shared.lab.HostAddr(shared.edge)
	for _, address := range []string{"127.0.0.1:" + port, net.JoinHostPort(host, port), net.JoinHostPort(host, gatewayPort)} {
		dial, cancel := context.WithTimeout(ctx, 2*time.Second)
		conn, err := shared.edge.DialContext(dial, "tcp", address)
		cancel()
		if err == nil {
			conn.Close()
			t.Errorf("the cluster reaches the hub's API at %s", address)
		}
	}
	conn, err := shared.edge.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(shared.gateway.TunnelPort())))
	if err != nil {
		t.Fatalf("the cluster does not reach the tunnel port: %v", err)
	}
	conn.Close()
}

// isReady looks for the condition in a ClusterGateway.
func isReady(text string) error {
	c := &v1alpha1.ClusterGateway{}
	if err := yaml.Unmarshal([]byte(text), c); err != nil {
		return err
	}
	if condition := meta.FindStatusCondition(c.Status.Conditions, v1alpha1.ConditionReady); condition == nil || condition.Status != metav1.ConditionTrue {
		return fmt.Errorf("Ready is %+v", condition)
	}
	return nil
}

// TestInviteOfRegistered applies an invitation to a cluster that is registered already, under another name and by an agent: it is refused, which the
// agent, the hub's Events and the invitation say, and the cluster goes on being reached as before.
func TestInviteOfRegistered(t *testing.T) {
	ctx := begin(t)
	kubelet(ctx, t)
	must(ctx, t, edgeArgs("--wait", "1m")...)
	deployment, err := shared.edge.Client().AppsV1().Deployments(agentNamespace).Get(ctx, "konnectivity-agent", noOptions)
	if err != nil {
		t.Fatal(err)
	}
	file, job := invite(ctx, t, "second")
	before := refusals(ctx, t, "second")
	t.Cleanup(func() { must(context.WithoutCancel(ctx), t, "invite", "second", "--revoke") })
	agent := enrol(ctx, t, shared.edge, file, job)
	const refusal = `this cluster is registered already, as "edge-1"`
	labtest.Within(t, time.Minute, "the refusal in the agent's log", func() error {
		log, err := os.ReadFile(agent.LogFile())
		if err == nil && !strings.Contains(string(log), strings.ReplaceAll(refusal, `"`, `\"`)) && !strings.Contains(string(log), refusal) {
			err = fmt.Errorf("it says\n%s", log)
		}
		return err
	})
	labtest.Within(t, time.Minute, "the refusal on the hub", func() error {
		out, said, err := invoke(ctx, bootstrap.Config{}, "status", "second")
		if err != nil || refusals(ctx, t, "second") == before || !strings.Contains(out, refusal) {
			return fmt.Errorf("%w: %d Events, and status says\n%s%s", err, refusals(ctx, t, "second")-before, out, said)
		}
		return nil
	})
	unregistered(ctx, t, "second")
	must(ctx, t, "doctor", "edge-1")
	after, err := shared.edge.Client().AppsV1().Deployments(agentNamespace).Get(ctx, "konnectivity-agent", noOptions)
	if err != nil {
		t.Fatal(err)
	}
	if after.Generation != deployment.Generation {
		t.Error("the agent that serves the cluster was changed")
	}
	if err := ready(ctx, "edge-1"); err != nil {
		t.Error(err)
	}
	// It comes again and again; that is told once.
	labtest.Within(t, time.Minute, "three refusals in the agent's log", func() error {
		log, err := os.ReadFile(agent.LogFile())
		if n := strings.Count(string(log), "registered as"); err == nil && n < 3 {
			err = fmt.Errorf("there are %d", n)
		}
		return err
	})
	if n := refusals(ctx, t, "second"); n != before+1 {
		t.Errorf("%d Events", n-before)
	}
}

// refusals counts the Events that tell of one.
func refusals(ctx context.Context, t *testing.T, name string) int {
	t.Helper()
	events, err := shared.hub.Client().CoreV1().Events("default").List(ctx, metav1.ListOptions{FieldSelector: "reason=EnrolmentRefused,involvedObject.name=" + name})
	if err != nil {
		t.Fatal(err)
	}
	return len(events.Items)
}

// TestInviteGatewayKilled kills the gateway while a cluster enrols; the cluster enrols with the next one.
func TestInviteGatewayKilled(t *testing.T) {
	ctx := begin(t)
	file, job := invite(ctx, t, "edge-1")
	kubelet(ctx, t)
	watch, err := shared.hub.Client().CoreV1().Secrets(hubNamespace).Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=invitation.edge-1"})
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Stop()
	enrol(ctx, t, shared.edge, file, job)
	for record(ctx, t, "edge-1").State == registration.InvitationOpen {
		select {
		case <-watch.ResultChan():
		case <-ctx.Done():
			t.Fatal("the cluster does not come")
		}
	}
	if err := shared.gateway.Kill(); err != nil {
		t.Fatal(err)
	}
	t.Logf("killed; the invitation is %s", record(ctx, t, "edge-1").State)
	if err := shared.gateway.Start(ctx); err != nil {
		t.Fatal(err)
	}
	labtest.Within(t, 2*time.Minute, "Ready", func() error { return ready(ctx, "edge-1") })
	if r := record(ctx, t, "edge-1"); r.State != registration.InvitationDone {
		t.Errorf("the invitation is %s", r.State)
	}
}

// TestInviteInput shows what the command refuses, before it changes anything.
func TestInviteInput(t *testing.T) {
	ctx := begin(t)
	must(ctx, t, nearbyArgs()...)
	nowhere := kubeconfig(t, "https://127.0.0.1:1", nil, nil)
	hub := dump(ctx, t, shared.hub)
	for _, c := range []struct {
		name string
		args []string
		now  func() time.Time
		want string
	}{
		{"no label", []string{"Edge_1"}, nil, `invalid cluster name "Edge_1"`},
		{"long name", []string{strings.Repeat("x", 64)}, nil, "at most 63 characters"},
		{"name of a record", []string{"invitation.b"}, nil, "reserved for the records of invitations"},
		{"registered", []string{"near-1"}, nil, `the name "near-1" is taken`},
		{"the gateway's own Secret", []string{"cluster-gateway-tunnel-ca"}, nil, "is taken"},
		{"short ttl", []string{"edge-1", "--ttl", "59s"}, nil, "--ttl must be between"},
		{"long ttl", []string{"edge-1", "--ttl", "721h"}, nil, "--ttl must be between"},
		{"negative ttl", []string{"edge-1", "--ttl=-1h"}, nil, "--ttl must be between"},
		{"hub unreachable", []string{"edge-1", "--kubeconfig", nowhere}, nil, "nothing answers"},
		{"clock", []string{"edge-1"}, func() time.Time { return time.Now().Add(10 * time.Minute) }, "clock"},
		{"address", []string{"edge-1", "--tunnel-address", "nonsense"}, nil, "it must be host:port"},
		{"token's life", []string{"edge-1", "--token-lifetime", "1m"}, nil, "--token-lifetime must be at least 10m"},
		{"process without an endpoint", []string{"edge-1", "--out-dir", "/nowhere"}, nil, "--out-dir needs --endpoint"},
		{"endpoint without TLS", []string{"edge-1", "--out-dir", "/nowhere", "--endpoint", "http://a"}, nil, "--endpoint: the scheme is"},
		{"endpoint's port", []string{"edge-1", "--out-dir", "/nowhere", "--endpoint", "https://a:0"}, nil, "--endpoint: the port is not"},
		{"address's port", []string{"edge-1", "--tunnel-address", "a:b"}, nil, "its port must be between"},
		{"endpoint of a Pod", []string{"edge-1", "--endpoint", "https://a"}, nil, "--endpoint is for --out-dir"},
		{"output", []string{"edge-1", "-o", "xml"}, nil, "yaml or json"},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, _, err := invoke(ctx, bootstrap.Config{Now: c.now}, append([]string{"invite"}, c.args...)...)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v; want that it says %q", err, c.want)
			}
			if out != "" {
				t.Errorf("it writes\n%s", out)
			}
			same(t, "the hub", hub, dump(ctx, t, shared.hub))
		})
	}
	out, _ := must(ctx, t, "invite", "edge-1", "--dry-run")
	if strings.Contains(out, "tls.key: LS0") || !strings.Contains(out, "<not shown>") {
		t.Error("a dry run writes a key")
	}
	same(t, "the hub, after a dry run", hub, dump(ctx, t, shared.hub))
	must(ctx, t, "invite", "edge-1", "-o", "json")
	once := dump(ctx, t, shared.hub)
	if _, said := must(ctx, t, "invite", "edge-1", "--dry-run"); !strings.Contains(said, "the previous one would be revoked") {
		t.Errorf("a dry run of another says\n%s", said)
	}
	same(t, "the hub, after a dry run of another", once, dump(ctx, t, shared.hub))
	_, said := must(ctx, t, "unregister", "edge-1")
	if !strings.Contains(said, "invitation") {
		t.Errorf("unregister says\n%s", said)
	}
	sameNames(t, "the hub, after unregistering what was invited only", hub, dump(ctx, t, shared.hub))
}

// TestInviteProcess enrols a cluster by an agent that runs as a process, with what the command writes and says; its certificate serves on, until the
// invitation is revoked.
func TestInviteProcess(t *testing.T) {
	ctx := begin(t)
	hubBefore, edgeBefore := dump(ctx, t, shared.hub), dump(ctx, t, shared.edge)
	dir := filepath.Join(t.TempDir(), "agent")
	out, said := must(ctx, t, "invite", "edge-1", "--access", "view", "--out-dir", dir, "--endpoint", shared.edge.Endpoint())
	file := filepath.Join(t.TempDir(), "invite.yaml")
	if err := os.WriteFile(file, []byte(out), 0o600); err != nil {
		t.Fatal(err)
	}
	// The commands that it says, with the cluster's kubeconfig.
	for line := range strings.Lines(said) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "kubectl apply") && !strings.HasPrefix(line, "printf") && !strings.HasPrefix(line, "{ cat") {
			continue
		}
		script := strings.NewReplacer("invite.yaml", file, "kubectl", shared.lab.Binaries().Kubectl).Replace(line)
		labtest.Within(t, time.Minute, line, func() error { // the cluster's CA is written by a controller
			cmd := exec.CommandContext(ctx, "sh", "-c", script)
			cmd.Env = append(os.Environ(), "KUBECONFIG="+shared.edgeFile)
			text, err := cmd.CombinedOutput()
			if err == nil && strings.Contains(line, "chain.crt") {
				var chain []byte
				if chain, err = os.ReadFile(filepath.Join(dir, "chain.crt")); bytes.Count(chain, []byte("BEGIN")) < 2 {
					err = errors.New("the CA is not there yet")
				}
			}
			if err != nil {
				return fmt.Errorf("%w: %s", err, text)
			}
			return nil
		})
	}
	agent := startProcess(ctx, t, dir, "invited")
	labtest.Within(t, time.Minute, "Ready", func() error { return ready(ctx, "edge-1") })
	path := filepath.Join(t.TempDir(), "edge-1.kubeconfig")
	must(ctx, t, "kubeconfig", "edge-1", "-o", path)
	kubectl(ctx, t, path, "get", "namespaces")
	labtest.Within(t, time.Minute, "the enrolment is gone", func() error {
		for name := range dump(ctx, t, shared.edge) {
			if strings.Contains(name, "enrol") {
				return errors.New(name)
			}
		}
		return nil
	})

	// Once more, with the same certificate; it does not enrol anything again.
	if err := agent.Kill(); err != nil {
		t.Fatal(err)
	}
	startProcess(ctx, t, dir, "invited-again")
	labtest.Within(t, time.Minute, "Ready", func() error { _, err := kubectlErr(ctx, path, "get", "namespaces"); return err })

	must(ctx, t, "invite", "edge-1", "--revoke")
	labtest.Within(t, time.Minute, "the agent is let go", func() error {
		if _, err := kubectlErr(ctx, path, "get", "namespaces"); err == nil {
			return errors.New("the cluster is still reached")
		}
		return nil
	})
	// It is still registered, and an agent's own certificate makes it reachable again.
	must(ctx, t, "rotate", "edge-1", "--cluster-kubeconfig", shared.edgeFile, "--out-dir", dir, "--wait", "0")
	startProcess(ctx, t, dir, "rotated")
	labtest.Within(t, time.Minute, "Ready", func() error { _, err := kubectlErr(ctx, path, "get", "namespaces"); return err })
	must(ctx, t, "unregister", "edge-1", "--cluster-kubeconfig", shared.edgeFile)
	sameNames(t, "the hub, after unregistering", hubBefore, dump(ctx, t, shared.hub))
	sameNames(t, "the cluster, after unregistering", edgeBefore, dump(ctx, t, shared.edge))
}

func kubectlErr(ctx context.Context, kubeconfig string, args ...string) ([]byte, error) {
	return exec.CommandContext(ctx, shared.lab.Binaries().Kubectl, append([]string{"--kubeconfig", kubeconfig, "--request-timeout=5s"}, args...)...).CombinedOutput()
}
