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
	"github.com/oam-dev/cluster-gateway/test/lab/bootstraptest"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

// invite creates an invitation, and returns its file and the name of the Job in it.
func invite(ctx context.Context, t *testing.T, args ...string) (file, job string) {
	t.Helper()
	if !shared.edge.Firewalled() {
		t.Skip("an agent that connects to the API server as kubernetes.default.svc:443 needs a network namespace, which requires root")
	}
	out, _ := must(ctx, t, append([]string{"invite"}, args...)...)
	file = filepath.Join(t.TempDir(), "invite.yaml")
	if err := os.WriteFile(file, []byte(out), 0o600); err != nil {
		t.Fatal(err)
	}
	return file, regexp.MustCompile(`konnectivity-agent-enrol-[0-9a-f]{8}`).FindString(out)
}

// apply applies an invitation, as someone with the cluster's kubeconfig would.
func apply(ctx context.Context, t *testing.T, c *lab.Cluster, file string) (said string) {
	t.Helper()
	out, err := c.Kubectl(ctx, "apply", "--validate=strict", "-f", file).CombinedOutput()
	if err != nil {
		t.Fatalf("kubectl apply: %v\n%s", err, out)
	}
	return string(out)
}

// enroll applies an invitation and runs its Job until the test ends.
func enroll(ctx context.Context, t *testing.T, c *lab.Cluster, file, job string) *lab.Agent {
	t.Helper()
	apply(ctx, t, c, file)
	var agent *lab.Agent
	labtest.Within(t, labtest.Timeout, "the Job", func() (err error) { // a controller writes the cluster's CA
		agent, err = shared.lab.StartAgentJob(ctx, c, agentNamespace, job, "enroll-"+strings.ReplaceAll(t.Name(), "/", "-")+"-"+strconv.FormatInt(time.Now().UnixNano(), 36))
		return err
	})
	t.Cleanup(func() { _ = agent.Kill() }) // it may have ended already
	return agent
}

func ready(ctx context.Context, name string) error {
	out, said, err := invoke(ctx, bootstrap.Config{}, "status", name, "-o", "json")
	if err != nil {
		return fmt.Errorf("%w %s", err, said)
	}
	return isReady(out)
}

// TestInvite registers a firewalled cluster with a file that is applied to it. The cluster can
// reach only the tunnel port of the hub.
func TestInvite(t *testing.T) {
	ctx := begin(t)
	hubBefore, edgeBefore := dump(ctx, t, shared.hub), dump(ctx, t, shared.edge)
	file, job := invite(ctx, t, "edge-1")
	cutOff(ctx, t)

	kubelet(ctx, t)
	began := time.Now()
	enrollAgent := enroll(ctx, t, shared.edge, file, job)
	labtest.Within(t, labtest.Timeout, "Ready", func() error { return ready(ctx, "edge-1") })
	t.Logf("Ready %s after kubectl apply began", time.Since(began).Round(time.Millisecond))

	path := filepath.Join(t.TempDir(), "edge-1.kubeconfig")
	must(ctx, t, "kubeconfig", "edge-1", "-o", path)
	kubectl(ctx, t, path, "create", "configmap", "from-the-hub", "--from-literal=a=b")
	if err := shared.edge.Client().CoreV1().ConfigMaps("default").Delete(ctx, "from-the-hub", metav1.DeleteOptions{}); err != nil {
		t.Errorf("an object that was created through the gateway is not in the cluster: %v", err)
	}

	// No object of the enrollment is left.
	labtest.Within(t, labtest.Timeout, "the objects of the enrollment to be deleted", func() error {
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
	if err := enrollAgent.Kill(); err != nil {
		t.Error(err)
	}
	out, _ := must(ctx, t, "list")
	if !strings.Contains(out, "edge-1") || strings.Contains(out, "INVITATION") {
		t.Errorf("list printed\n%s", out)
	}
	must(ctx, t, "doctor", "edge-1")

	// The registration is the same as that of register, which finds nothing to do.
	hubOnce, edgeOnce := dump(ctx, t, shared.hub), dump(ctx, t, shared.edge)
	_, said := must(ctx, t, edgeArgs("--wait", "1m")...)
	if strings.Contains(said, "created") || strings.Contains(said, "changed") && !strings.Contains(said, "unchanged") {
		t.Errorf("register changed something:\n%s", said)
	}
	sameNames(t, "the hub, after registering an invited cluster", hubOnce, dump(ctx, t, shared.hub))
	sameNames(t, "the cluster, after registering an invited cluster", edgeOnce, dump(ctx, t, shared.edge))

	must(ctx, t, "unregister", "edge-1", "--cluster-kubeconfig", shared.edgeFile)
	sameNames(t, "the hub, after unregistering", hubBefore, dump(ctx, t, shared.hub))
	sameNames(t, "the cluster, after unregistering", edgeBefore, dump(ctx, t, shared.edge))
}

// cutOff checks that the cluster cannot reach the hub's API, but can reach the tunnel port.
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

// isReady checks the condition Ready of a ClusterGateway.
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

// TestInvitationShown checks what the commands report about an open invitation, and about a revoked
// one.
func TestInvitationShown(t *testing.T) {
	ctx := begin(t)
	must(ctx, t, "invite", "near-1")
	if out, _ := must(ctx, t, "status", "near-1"); !strings.Contains(out, "open, expires in") {
		t.Errorf("status printed\n%s", out)
	}
	if out, _, err := invoke(ctx, bootstrap.Config{}, "doctor", "near-1"); err == nil || !strings.Contains(out, "is invited, but it is not registered yet") {
		t.Errorf("doctor: %v\n%s", err, out)
	}
	if out, _ := must(ctx, t, "list"); !strings.Contains(out, "INVITATION") || !strings.Contains(out, "near-1") {
		t.Errorf("list printed\n%s", out)
	}
	must(ctx, t, "invite", "near-1", "--revoke")
	if _, _, err := invoke(ctx, bootstrap.Config{}, "status", "near-1"); err == nil || !strings.Contains(err.Error(), "not registered") {
		t.Errorf("status of a revoked invitation: %v", err)
	}
}

// TestInviteOfRegistered applies an invitation to a cluster that is already registered under
// another name and runs an agent. The invitation is refused: the agent's log, an Event on the hub
// and the invitation's record say so. The cluster stays reachable.
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
	agent := enroll(ctx, t, shared.edge, file, job)
	const refusal = `this cluster is registered already, as "edge-1"`
	labtest.Within(t, labtest.Timeout, "the refusal in the agent's log", func() error {
		log, err := os.ReadFile(agent.LogFile())
		if err == nil && !strings.Contains(string(log), strings.ReplaceAll(refusal, `"`, `\"`)) && !strings.Contains(string(log), refusal) {
			err = fmt.Errorf("it printed\n%s", log)
		}
		return err
	})
	labtest.Within(t, labtest.Timeout, "the refusal on the hub", func() error {
		out, said, err := invoke(ctx, bootstrap.Config{}, "status", "second")
		if err != nil || refusals(ctx, t, "second") == before || !strings.Contains(out, refusal) || !strings.Contains(out, "last refusal: ") {
			return fmt.Errorf("%w: %d Events, and status printed\n%s%s", err, refusals(ctx, t, "second")-before, out, said)
		}
		return nil
	})
	bootstraptest.CheckNotRegistered(ctx, t, shared.hub, "second")
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
	// The agent tries repeatedly, but the refusal is reported once.
	labtest.Within(t, labtest.Timeout, "three refusals in the agent's log", func() error {
		log, err := os.ReadFile(agent.LogFile())
		if n := strings.Count(string(log), "is registered already, as"); err == nil && n < 3 {
			err = fmt.Errorf("there are %d", n)
		}
		return err
	})
	if n := refusals(ctx, t, "second"); n != before+1 {
		t.Errorf("%d Events", n-before)
	}
}

// refusals counts the Events about refused enrollments of a cluster.
func refusals(ctx context.Context, t *testing.T, name string) int {
	t.Helper()
	events, err := shared.hub.Client().CoreV1().Events("default").List(ctx, metav1.ListOptions{FieldSelector: "reason=EnrollmentRefused,involvedObject.name=" + name})
	if err != nil {
		t.Fatal(err)
	}
	return len(events.Items)
}

// TestInviteGatewayKilled kills the gateway while a cluster enrolls. The cluster enrolls with the
// next gateway.
func TestInviteGatewayKilled(t *testing.T) {
	ctx := begin(t)
	file, job := invite(ctx, t, "edge-1")
	kubelet(ctx, t)
	watch, err := shared.hub.Client().CoreV1().Secrets(hubNamespace).Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=invitation.edge-1"})
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Stop()
	enroll(ctx, t, shared.edge, file, job)
	for bootstraptest.Invitation(ctx, t, shared.hub, "edge-1").State == registration.InvitationOpen {
		select {
		case <-watch.ResultChan():
		case <-ctx.Done():
			t.Fatal("the cluster does not enroll")
		}
	}
	if err := shared.gateway.Kill(); err != nil {
		t.Fatal(err)
	}
	t.Logf("killed; the invitation is %s", bootstraptest.Invitation(ctx, t, shared.hub, "edge-1").State)
	if err := shared.gateway.Start(ctx); err != nil {
		t.Fatal(err)
	}
	labtest.Within(t, labtest.Timeout, "Ready", func() error { return ready(ctx, "edge-1") })
	if r := bootstraptest.Invitation(ctx, t, shared.hub, "edge-1"); r.State != registration.InvitationDone {
		t.Errorf("the invitation is %s", r.State)
	}
}

// TestInviteProcess enrolls a cluster with an agent that runs as a process, with the files and the
// instructions of the command. The certificate remains valid until the invitation is revoked.
func TestInviteProcess(t *testing.T) {
	ctx := begin(t)
	hubBefore, edgeBefore := dump(ctx, t, shared.hub), dump(ctx, t, shared.edge)
	dir := filepath.Join(t.TempDir(), "agent")
	out, said := must(ctx, t, "invite", "edge-1", "--access", "view", "--out-dir", dir, "--endpoint", shared.edge.Endpoint())
	file := filepath.Join(t.TempDir(), "invite.yaml")
	if err := os.WriteFile(file, []byte(out), 0o600); err != nil {
		t.Fatal(err)
	}
	// The commands that it prints, with the cluster's kubeconfig.
	for line := range strings.Lines(said) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "kubectl apply") && !strings.HasPrefix(line, "printf") && !strings.HasPrefix(line, "{ cat") {
			continue
		}
		script := strings.NewReplacer("invite.yaml", file, "kubectl", shared.lab.Binaries().Kubectl).Replace(line)
		labtest.Within(t, labtest.Timeout, line, func() error { // a controller writes the cluster's CA
			cmd := exec.CommandContext(ctx, "sh", "-c", script)
			cmd.Env = append(os.Environ(), "KUBECONFIG="+shared.edgeFile)
			text, err := cmd.CombinedOutput()
			if err == nil && strings.Contains(line, "chain.crt") {
				var chain []byte
				if chain, err = os.ReadFile(filepath.Join(dir, "chain.crt")); bytes.Count(chain, []byte("BEGIN")) < 2 {
					err = errors.New("the CA does not exist yet")
				}
			}
			if err != nil {
				return fmt.Errorf("%w: %s", err, text)
			}
			return nil
		})
	}
	agent := startProcess(ctx, t, dir, "invited")
	labtest.Within(t, labtest.Timeout, "Ready", func() error { return ready(ctx, "edge-1") })
	path := filepath.Join(t.TempDir(), "edge-1.kubeconfig")
	must(ctx, t, "kubeconfig", "edge-1", "-o", path)
	kubectl(ctx, t, path, "get", "namespaces")
	labtest.Within(t, labtest.Timeout, "the objects of the enrollment to be deleted", func() error {
		for name := range dump(ctx, t, shared.edge) {
			if strings.Contains(name, "enrol") {
				return errors.New(name)
			}
		}
		return nil
	})

	// Once more, with the same certificate. It does not enroll again.
	if err := agent.Kill(); err != nil {
		t.Fatal(err)
	}
	startProcess(ctx, t, dir, "invited-again")
	labtest.Within(t, labtest.Timeout, "Ready", func() error { _, err := kubectlErr(ctx, path, "get", "namespaces"); return err })

	must(ctx, t, "invite", "edge-1", "--revoke")
	labtest.Within(t, labtest.Timeout, "the agent to be disconnected", func() error {
		if _, err := kubectlErr(ctx, path, "get", "namespaces"); err == nil {
			return errors.New("the cluster can still be reached")
		}
		return nil
	})
	// The cluster is still registered. With an agent's own certificate, it can be reached again.
	must(ctx, t, "rotate", "edge-1", "--cluster-kubeconfig", shared.edgeFile, "--out-dir", dir, "--wait", "0")
	startProcess(ctx, t, dir, "rotated")
	labtest.Within(t, labtest.Timeout, "Ready", func() error { _, err := kubectlErr(ctx, path, "get", "namespaces"); return err })
	must(ctx, t, "unregister", "edge-1", "--cluster-kubeconfig", shared.edgeFile)
	sameNames(t, "the hub, after unregistering", hubBefore, dump(ctx, t, shared.hub))
	sameNames(t, "the cluster, after unregistering", edgeBefore, dump(ctx, t, shared.edge))
}

func kubectlErr(ctx context.Context, kubeconfig string, args ...string) ([]byte, error) {
	return exec.CommandContext(ctx, shared.lab.Binaries().Kubectl, append([]string{"--kubeconfig", kubeconfig, "--request-timeout=5s"}, args...)...).CombinedOutput()
}
