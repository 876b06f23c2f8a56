// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package bootstrap tests agent-bootstrap against real clusters: a hub with a gateway, a cluster
// that the gateway can reach, and a firewalled one. It is a separate package because its tests
// register and remove the clusters. Tests that need no gateway are in pkg/bootstrap and
// pkg/enrollment, behind the build tag integration.
package bootstrap

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/bootstrap"
	"github.com/oam-dev/cluster-gateway/test/lab"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

const (
	hubNamespace   = "cluster-gateway-system"
	agentNamespace = "cluster-gateway-agent"
	// caseTimeout bounds each test.
	caseTimeout = 15 * time.Minute
)

// env is the lab that all tests share.
type env struct {
	lab               *lab.Lab
	hub, nearby, edge *lab.Cluster
	gateway           *lab.Gateway
	hubFile, edgeFile string
	nearbyFile        string
	serial            sync.Mutex
}

// shared is set before the first test, and does not change after that.
var shared *env

func TestMain(m *testing.M) { labtest.Main(m, start) }

func start(ctx context.Context, l *lab.Lab) error {
	e := &env{lab: l}
	binary, err := lab.BuildGateway(ctx, e.lab.Dir(), false)
	if err != nil {
		return err
	}
	var group errgroup.Group
	for _, c := range []struct {
		into    **lab.Cluster
		options lab.ClusterOptions
	}{
		{&e.hub, lab.ClusterOptions{Name: "hub", NoControllerManager: true, NoKwok: true}},
		{&e.nearby, lab.ClusterOptions{Name: "nearby", NoKwok: true}},
		{&e.edge, lab.ClusterOptions{Name: "edge", Firewalled: true, NoKwok: true}},
	} {
		group.Go(func() (err error) {
			*c.into, err = e.lab.StartCluster(ctx, c.options)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	options := lab.GatewayOptions{Hub: e.hub, Binary: binary, AgentsOf: e.edge, ExtraArgs: []string{"--tunnel-advertise-address=" + proxiedHost}}
	if e.gateway, err = e.lab.StartGateway(ctx, options); err != nil {
		return err
	}
	if err := e.gateway.RegisterAPIService(ctx); err != nil {
		return err
	}
	e.hubFile, e.nearbyFile = e.hub.Kubeconfig(), e.nearby.Kubeconfig()
	e.edgeFile, err = e.edge.BastionKubeconfig()
	shared = e
	return err
}

// output collects what a command writes.
type output struct {
	mu       sync.Mutex
	out, err bytes.Buffer
}

func (o *output) writer(b *bytes.Buffer) writerFunc {
	return func(p []byte) (int, error) {
		o.mu.Lock()
		defer o.mu.Unlock()
		return b.Write(p)
	}
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// invoke runs agent-bootstrap in this process.
func invoke(ctx context.Context, config bootstrap.Config, args ...string) (stdout, stderr string, err error) {
	o := &output{}
	config.Out, config.ErrOut = o.writer(&o.out), o.writer(&o.err)
	cmd := bootstrap.NewCommand(config)
	cmd.SetArgs(append([]string{"--kubeconfig", shared.hubFile}, args...))
	err = cmd.ExecuteContext(ctx)
	return o.out.String(), o.err.String(), err
}

// must runs agent-bootstrap, which must succeed.
func must(ctx context.Context, t *testing.T, args ...string) (stdout, stderr string) {
	t.Helper()
	stdout, stderr, err := invoke(ctx, bootstrap.Config{}, args...)
	if err != nil {
		t.Fatalf("agent-bootstrap %s: %v\n%s%s", strings.Join(args, " "), err, stderr, stdout)
	}
	return stdout, stderr
}

// begin gives a test exclusive use of the lab, with nothing registered, and cleans up after it.
func begin(t *testing.T) context.Context {
	t.Helper()
	shared.serial.Lock()
	t.Cleanup(shared.serial.Unlock)
	ctx, cancel := context.WithTimeout(t.Context(), caseTimeout)
	t.Cleanup(cancel)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), caseTimeout)
		defer cancel()
		for name, file := range map[string]string{"edge-1": shared.edgeFile, "near-1": shared.nearbyFile} {
			if _, _, err := invoke(ctx, bootstrap.Config{}, "unregister", name, "--cluster-kubeconfig", file); err != nil {
				t.Errorf("cleaning up: %v", err)
			}
		}
	})
	return ctx
}

// edgeArgs returns the arguments that register the firewalled cluster.
func edgeArgs(more ...string) []string {
	args := []string{"register", "edge-1", "--cluster-kubeconfig", shared.edgeFile}
	if !shared.edge.Firewalled() { // as without root: no hosts file, and another port
		args = append(args, "--endpoint", shared.edge.Endpoint())
	}
	return append(args, more...)
}

func nearbyArgs(more ...string) []string {
	return append([]string{"register", "near-1", "--cluster-kubeconfig", shared.nearbyFile, "--route", "direct", "--endpoint", shared.nearby.Endpoint()}, more...)
}

// kubelet starts the agent's Pod as soon as it exists and stops it when the test ends: the lab has
// no container runtime.
func kubelet(ctx context.Context, t *testing.T) <-chan *lab.Agent {
	t.Helper()
	started := make(chan *lab.Agent, 1)
	var running sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	running.Go(func() {
		for ctx.Err() == nil {
			agent, err := shared.lab.StartAgentPod(ctx, shared.edge, agentNamespace, "konnectivity-agent", "pod-"+strings.ReplaceAll(t.Name(), "/", "-"))
			switch {
			case err == nil:
				started <- agent
				<-ctx.Done()
				if err := agent.Kill(); err != nil {
					t.Error(err)
				}
				return
			case ctx.Err() == nil && !apierrors.IsNotFound(err):
				t.Errorf("starting the agent: %v", err)
				return
			}
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
	return started
}

// dump returns everything that register could have left: objects by kind and name, with their
// resource version. For objects whose status a controller writes, it returns the generation
// instead.
func dump(ctx context.Context, t *testing.T, c *lab.Cluster) map[string]string {
	t.Helper()
	if c != shared.hub { // there are no controllers
		awaitNamespaces(ctx, t, c)
	}
	kinds := "namespaces,serviceaccounts,secrets,configmaps,deployments,roles,rolebindings,clusterroles,clusterrolebindings,priorityclasses,poddisruptionbudgets,networkpolicies"
	out, err := c.Kubectl(ctx, "get", kinds, "-A", "-o",
		`jsonpath={range .items[*]}{.kind} {.metadata.namespace}/{.metadata.name} {.metadata.resourceVersion} {.metadata.generation}{"\n"}{end}`).Output()
	if err != nil {
		t.Fatal(err)
	}
	objects := map[string]string{}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		if len(fields) < 3 {
			t.Fatalf("kubectl get printed %q", line)
		}
		version := fields[2]
		if slices.Contains([]string{"Deployment", "PodDisruptionBudget"}, fields[0]) {
			version = fields[len(fields)-1]
		}
		objects[fields[0]+" "+fields[1]] = version
	}
	if err := withoutHealth(ctx, c, objects); err != nil {
		t.Fatal(err)
	}
	if len(objects) < 10 {
		t.Fatalf("only %d objects: %s", len(objects), out)
	}
	return objects
}

// awaitNamespaces waits until controllers have filled every namespace, which takes a moment.
func awaitNamespaces(ctx context.Context, t *testing.T, c *lab.Cluster) {
	t.Helper()
	core := c.Client().CoreV1()
	labtest.Within(t, labtest.Timeout, "controllers to fill the namespaces", func() error {
		namespaces, err := core.Namespaces().List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, namespace := range namespaces.Items {
			if namespace.DeletionTimestamp != nil {
				continue
			}
			if _, err := core.ServiceAccounts(namespace.Name).Get(ctx, "default", noOptions); err != nil {
				return err
			}
			if _, err := core.ConfigMaps(namespace.Name).Get(ctx, "kube-root-ca.crt", noOptions); err != nil {
				return err
			}
		}
		return nil
	})
}

// withoutHealth replaces the versions of the clusters' Secrets on the hub with a hash of their
// content without health, because the gateway writes there whenever the health changes.
func withoutHealth(ctx context.Context, c *lab.Cluster, objects map[string]string) error {
	secrets, err := c.Client().CoreV1().Secrets(hubNamespace).List(ctx, metav1.ListOptions{LabelSelector: v1alpha1.LabelCredentialType})
	if err != nil {
		return err
	}
	for _, secret := range secrets.Items {
		maps.DeleteFunc(secret.Annotations, func(key, _ string) bool { return strings.HasPrefix(key, "status."+v1alpha1.GroupName+"/") })
		content, err := json.Marshal([]any{secret.UID, secret.Labels, secret.Annotations, secret.Data})
		if err != nil {
			return err
		}
		objects["Secret "+hubNamespace+"/"+secret.Name] = fmt.Sprintf("%x", sha256.Sum256(content))
	}
	return nil
}

// noOptions are the options of every Get.
var noOptions = metav1.GetOptions{}
