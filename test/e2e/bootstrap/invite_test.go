// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
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
	"github.com/oam-dev/cluster-gateway/test/lab"
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

// apply applies an invitation as whoever has the cluster's kubeconfig would, and removes it with the test.
func apply(ctx context.Context, t *testing.T, c *lab.Cluster, file string) {
	t.Helper()
	out, err := c.Kubectl(ctx, "apply", "--validate=strict", "-f", file).CombinedOutput()
	if err != nil || strings.Contains(string(out), "Warning") {
		t.Fatalf("kubectl apply: %v\n%s", err, out)
	}
}

// enrol applies an invitation and runs its Job until the test ends.
func enrol(ctx context.Context, t *testing.T, c *lab.Cluster, file, job string) *lab.Agent {
	t.Helper()
	apply(ctx, t, c, file)
	var agent *lab.Agent
	within(t, time.Minute, "the Job", func() (err error) { // the cluster's CA is written by a controller
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
	within(t, time.Minute, "Ready", func() error { return ready(ctx, "edge-1") })
	t.Logf("Ready %s after kubectl apply began", time.Since(began).Round(time.Millisecond))

	path := filepath.Join(t.TempDir(), "edge-1.kubeconfig")
	must(ctx, t, "kubeconfig", "edge-1", "-o", path)
	kubectl(ctx, t, path, "create", "configmap", "from-the-hub", "--from-literal=a=b")
	if err := shared.edge.Client().CoreV1().ConfigMaps("default").Delete(ctx, "from-the-hub", metav1.DeleteOptions{}); err != nil {
		t.Errorf("what was created through the gateway is not in the cluster: %v", err)
	}

	// Nothing of the enrolment stays.
	within(t, time.Minute, "the enrolment is gone", func() error {
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
