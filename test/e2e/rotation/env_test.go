// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package rotation tests that a gateway renews its certificates and credentials, against real
// clusters: a hub, and a firewalled cluster whose agent is restarted as its Deployment requires.
// Each test starts its own gateway, with its own lifetimes.
package rotation

import (
	"bytes"
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kube-aggregator/pkg/client/clientset_generated/clientset"
	apiregistrationclient "k8s.io/kube-aggregator/pkg/client/clientset_generated/clientset/typed/apiregistration/v1"

	"github.com/oam-dev/cluster-gateway/pkg/bootstrap"
	"github.com/oam-dev/cluster-gateway/pkg/pki"
	"github.com/oam-dev/cluster-gateway/test/lab"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

const (
	hubNamespace   = "cluster-gateway-system"
	agentNamespace = "cluster-gateway-agent"
	agentName      = "konnectivity-agent"
	clusterName    = "edge-1"
	apiServiceName = "v1alpha1.cluster.core.oam.dev"
	gateways       = "/apis/cluster.core.oam.dev/v1alpha1/clustergateways"
	// noticed bounds a wait for something that is in progress.
	noticed = labtest.Timeout
)

// env is the lab that all tests share, one after another.
type env struct {
	lab       *lab.Lab
	hub, edge *lab.Cluster
	edgeFile  string
	binary    string
	// servingHub is for the tests that need no cluster. They run in parallel with the others.
	servingHub *lab.Cluster
	// One test at a time uses hub and edge, and one uses servingHub.
	hubLock, servingLock sync.Mutex
}

// exclusively runs a test in parallel with others, except for those that hold the same lock.
func exclusively(t *testing.T, lock *sync.Mutex) {
	t.Helper()
	t.Parallel()
	lock.Lock()
	t.Cleanup(lock.Unlock)
}

// plainGateway is the variable that builds the gateway without the race detector.
const plainGateway = "E2E_PLAIN_GATEWAY"

// shared is set before the first test, and does not change after that.
var shared *env

func TestMain(m *testing.M) { labtest.Main(m, start) }

func start(ctx context.Context, l *lab.Lab) (err error) {
	e := &env{lab: l}
	if e.binary, err = lab.BuildGateway(ctx, e.lab.Dir(), os.Getenv(plainGateway) == ""); err != nil {
		return err
	}
	var group errgroup.Group
	group.Go(func() (err error) {
		e.hub, err = e.lab.StartCluster(ctx, lab.ClusterOptions{Name: "hub", NoControllerManager: true, NoKwok: true})
		return err
	})
	group.Go(func() (err error) {
		e.servingHub, err = e.lab.StartCluster(ctx, lab.ClusterOptions{Name: "hub-serving", NoControllerManager: true, NoKwok: true})
		return err
	})
	group.Go(func() (err error) {
		e.edge, err = e.lab.StartCluster(ctx, lab.ClusterOptions{Name: "edge", Firewalled: true})
		return err
	})
	if err := group.Wait(); err != nil {
		return err
	}
	e.edgeFile, err = e.edge.BastionKubeconfig()
	shared = e
	return err
}

// site is a gateway for one test.
type site struct {
	*lab.Gateway
	hub *lab.Cluster
}

// tunnelOff is the flag of gateways in tests that need no cluster.
const tunnelOff = "--tunnel-mode=off"

// begin starts a gateway on a hub without objects of an earlier gateway.
func begin(ctx context.Context, t *testing.T, args ...string) *site {
	t.Helper()
	return beginWith(ctx, t, lab.GatewayOptions{Binary: shared.binary, ExtraArgs: args})
}

// beginRenewing is begin with a gateway that renews tokens at this age.
func beginRenewing(ctx context.Context, t *testing.T, age time.Duration, args ...string) *site {
	t.Helper()
	binary, err := lab.BuildRenewingGateway(ctx, shared.lab.Dir(), os.Getenv(plainGateway) == "")
	if err != nil {
		t.Fatal(err)
	}
	return beginWith(ctx, t, lab.GatewayOptions{Binary: binary, ExtraArgs: args, Env: []string{lab.RenewTokensAfterVariable + "=" + age.String()}})
}

func beginWith(ctx context.Context, t *testing.T, o lab.GatewayOptions) *site {
	t.Helper()
	hub, alone := shared.hub, slices.Contains(o.ExtraArgs, tunnelOff)
	if alone {
		hub = shared.servingHub
	}
	o.Name, o.Hub, o.AgentsOf = "gateway-"+strings.ToLower(t.Name()), hub, shared.edge
	o.TunnelOff = alone
	o.ExtraArgs = append([]string{"--health-probe-interval=1s"}, o.ExtraArgs...)
	g, err := shared.lab.StartGateway(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	s := &site{g, hub}
	t.Cleanup(func() {
		if err := errors.Join(g.Stop(), s.removeAll(!alone)); err != nil {
			t.Error(err)
		}
	})
	if err := g.RegisterAPIService(ctx); err != nil {
		t.Fatal(err)
	}
	return s
}

// removeAll removes everything that a gateway has created on the hub, and in the registered cluster
// if there is one.
func (s *site) removeAll(registered bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), noticed)
	defer cancel()
	var errs []error
	remove := func(err error) {
		if !apierrors.IsNotFound(err) {
			errs = append(errs, err)
		}
	}
	services, err := s.apiServices()
	if err != nil {
		return err
	}
	core := s.hub.Client().CoreV1()
	remove(services.Delete(ctx, apiServiceName, metav1.DeleteOptions{}))
	for _, name := range []string{pki.CASecret, pki.AgentsCASecret, pki.ServingSecret, pki.GatewayCASecret, pki.GatewayServingSecret, clusterName} {
		remove(core.Secrets(hubNamespace).Delete(ctx, name, metav1.DeleteOptions{}))
	}
	remove(core.ConfigMaps(hubNamespace).Delete(ctx, pki.ConfigMap, metav1.DeleteOptions{}))
	if !registered {
		return errors.Join(errs...)
	}
	namespaces := shared.edge.Client().CoreV1().Namespaces()
	remove(namespaces.Delete(ctx, agentNamespace, metav1.DeleteOptions{}))
	for ctx.Err() == nil {
		if _, err := namespaces.Get(ctx, agentNamespace, metav1.GetOptions{}); apierrors.IsNotFound(err) {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	return errors.Join(append(errs, ctx.Err())...)
}

func (s *site) apiServices() (apiregistrationclient.APIServiceInterface, error) {
	client, err := clientset.NewForConfig(s.hub.RESTConfig())
	if err != nil {
		return nil, err
	}
	return client.ApiregistrationV1().APIServices(), nil
}

// agents runs the agent's Deployment until the test ends.
func agents(t *testing.T) *lab.AgentDeployment {
	t.Helper()
	d := shared.lab.RunAgentDeployment(shared.edge, agentNamespace, agentName)
	t.Cleanup(func() {
		if err := d.Stop(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// registerArgs returns the arguments that register the cluster.
func registerArgs(more ...string) []string {
	args := []string{"register", clusterName, "--cluster-kubeconfig", shared.edgeFile}
	if !shared.edge.Firewalled() { // as without root: no hosts file, and another port
		args = append(args, "--endpoint", shared.edge.Endpoint())
	}
	return append(args, more...)
}

// agentBootstrap runs agent-bootstrap, and returns its output.
func agentBootstrap(ctx context.Context, t *testing.T, args ...string) string {
	t.Helper()
	var said bytes.Buffer
	cmd := bootstrap.NewCommand(bootstrap.Config{Out: &said, ErrOut: &said})
	cmd.SetArgs(append([]string{"--kubeconfig", shared.hub.Kubeconfig()}, args...))
	if err := cmd.ExecuteContext(ctx); err != nil {
		t.Fatalf("agent-bootstrap %s: %v\n%s", strings.Join(args, " "), err, &said)
	}
	return said.String()
}

func (s *site) hubSecret(ctx context.Context, name string) (*corev1.Secret, error) {
	return s.hub.Client().CoreV1().Secrets(hubNamespace).Get(ctx, name, metav1.GetOptions{})
}

func agentSecret(ctx context.Context) (*corev1.Secret, error) {
	return shared.edge.Client().CoreV1().Secrets(agentNamespace).Get(ctx, agentName, metav1.GetOptions{})
}
