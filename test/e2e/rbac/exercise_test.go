// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package rbac

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
	"k8s.io/client-go/rest"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/bootstrap"
	"github.com/oam-dev/cluster-gateway/pkg/pki"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
	"github.com/oam-dev/cluster-gateway/test/lab"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

type event = auditv1.Event

// needsNamespace is the reason why a cluster cannot enroll itself without root.
const needsNamespace = "an agent that connects to the API server as kubernetes.default.svc:443 needs a network namespace, which requires root"

// invitedName is the name of the cluster that enrolls itself.
const invitedName = "invited-1"

// caLifetime is short, so that the CA is replaced during the test. It is long enough for all other
// steps to finish first, because the lab does not restart the agent.
const caLifetime = 2 * time.Minute

// clusterAPINamespace is the namespace of the component clusterapi.
const clusterAPINamespace = "clusters"

// site is a hub with a gateway, and a cluster that is registered with it.
type site struct {
	lab       *lab.Lab
	hub, edge *lab.Cluster
	gateway   *lab.Gateway
	agent     *lab.Agent

	// invited is a cluster that enrolls itself. Its invitation is deleted after that: enrolling
	// contains the rules that existed before.
	invited    *lab.Cluster
	invitation record
	enrolling  []Unit
}

// exercise makes the gateway use each of its permissions at least once. If you add a rule to the
// manifests, add a step here, unless a step already needs it. The steps run the product's own code,
// and none of them uses the gateway's credential itself.
func (s *site) exercise(ctx context.Context, t *testing.T) {
	for _, step := range []struct {
		name string
		do   func(context.Context, *testing.T)
	}{
		// Start and registration with the hub: the hub's client CA, the clusters, the CAs and
		// serving certificates, the APIService's CA bundle, the Lease.
		{"the tunnel's certificates are created and published", s.published},
		// The Secret's annotations and Events, by probes; the requests of the aggregation layer.
		{"a cluster is registered", s.register},
		{"clusters are read", s.read},
		{"callers are authenticated and authorized", s.call},
		{"an operator overrides the health", s.override},
		// In the managed cluster: a token, the agent's certificate, and rolling the agent.
		{"credentials are renewed", s.rotate},
		// doctor reads the agent's certificate through the gateway.
		{"doctor finds the fault", s.doctor},
		// Secrets in the namespace of Cluster API, and the Secret that is made from one of them.
		{"a cluster of Cluster API is registered and unregistered", s.clusterAPI},
		// In a cluster that enrolls itself: what the invitation allows while it exists.
		{"a cluster enrolls with an invitation", s.enroll},
		// The Secret of a cluster on the hub, which nothing else deletes.
		{"an invitation is revoked while its cluster enrolls", s.revoke},
		{"the tunnel's CA is replaced", s.replaced},
		// A replica removes the Lease with which others find it.
		{"a replica stops", s.restart},
	} {
		t.Run(step.name, func(t *testing.T) { step.do(ctx, t) })
		if t.Failed() {
			t.FailNow()
		}
	}
}

func newSite(ctx context.Context, t *testing.T) *site {
	t.Helper()
	s := &site{lab: newLab(ctx, t)}
	binary, err := lab.BuildGateway(ctx, s.lab.Dir(), false)
	if err != nil {
		t.Fatal(err)
	}
	var group errgroup.Group
	for _, c := range []struct {
		into    **lab.Cluster
		options lab.ClusterOptions
	}{
		{&s.hub, lab.ClusterOptions{Name: "hub", NoControllerManager: true, NoKwok: true, AuditUsers: []string{hubAccount}}},
		{&s.invited, lab.ClusterOptions{Name: "invited", NoKwok: true, Firewalled: true, AuditUsers: []string{clusterAccount, agentAccount}}},
		{&s.edge, lab.ClusterOptions{Name: "edge", NoKwok: true, Firewalled: true, AuditUsers: []string{clusterAccount, agentAccount}}},
	} {
		group.Go(func() (err error) {
			*c.into, err = s.lab.StartCluster(ctx, c.options)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := s.hub.EnsureNamespace(ctx, clusterAPINamespace); err != nil {
		t.Fatal(err)
	}
	if out, err := s.hub.Kubectl(ctx, "apply", "-f", "../../../manifests/gateway/clusterapi/rbac.yaml").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if s.gateway, err = s.lab.StartGateway(ctx, lab.GatewayOptions{
		Hub: s.hub, Binary: binary, AgentsOf: s.edge, ExtraArgs: []string{
			"--tunnel-ca-lifetime=" + caLifetime.String(), "--health-probe-interval=1s",
			"--peer-advertise-address=127.0.0.1", "--peer-bind-address=127.0.0.1", "--peer-port=0",
			"--cluster-api-namespaces=" + clusterAPINamespace,
		},
	}); err != nil {
		t.Fatal(err)
	}
	if err := s.gateway.RegisterAPIService(ctx); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *site) tunnel(ctx context.Context) (*corev1.ConfigMap, error) {
	return s.hub.Client().CoreV1().ConfigMaps(hubNamespace).Get(ctx, pki.ConfigMap, metav1.GetOptions{})
}

func (s *site) published(ctx context.Context, t *testing.T) {
	labtest.Within(t, labtest.Timeout, "the address of the tunnel", func() error {
		m, err := s.tunnel(ctx)
		if err == nil && m.Data[pki.KeyAddress] == "" {
			err = fmt.Errorf("it is not in %v", m.Data)
		}
		return err
	})
}

// replaced waits until the ConfigMap has another CA than the first one.
func (s *site) replaced(ctx context.Context, t *testing.T) {
	labtest.Within(t, 2*caLifetime+time.Minute, "another CA of the tunnel", func() error {
		m, err := s.tunnel(ctx)
		if err == nil && strings.Count(m.Data[pki.KeyBundle], "BEGIN CERTIFICATE") < 2 {
			err = fmt.Errorf("there is only one")
		}
		return err
	})
}

// register registers the cluster. Its agent runs as soon as its Deployment exists.
func (s *site) register(ctx context.Context, t *testing.T) {
	running := make(chan error, 1)
	go func() {
		for {
			var err error
			s.agent, err = s.lab.StartAgentPod(ctx, s.edge, agentNamespace, "konnectivity-agent", "agent")
			if apierrors.IsNotFound(err) && ctx.Err() == nil {
				time.Sleep(50 * time.Millisecond)
				continue
			}
			running <- err
			return
		}
	}()
	kubeconfig, err := s.edge.BastionKubeconfig()
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"register", clusterName, "--cluster-kubeconfig", kubeconfig, "--access", "impersonate", "--wait", "2m"}
	if !s.edge.Firewalled() { // as without root: no hosts file, and another port
		args = append(args, "--endpoint", s.edge.Endpoint())
	}
	s.bootstrap(ctx, t, args...)
	if err := <-running; err != nil {
		t.Fatal(err)
	}
	s.healthy(ctx, t, "true")
}

// healthy waits until the Secret has this health.
func (s *site) healthy(ctx context.Context, t *testing.T, want string) {
	t.Helper()
	labtest.Within(t, labtest.Timeout, "the health of the cluster on its Secret", func() error {
		secret, err := s.hub.Client().CoreV1().Secrets(hubNamespace).Get(ctx, clusterName, metav1.GetOptions{})
		if err == nil && secret.Annotations[v1alpha1.AnnotationHealthy] != want {
			err = fmt.Errorf("annotations %v", secret.Annotations)
		}
		return err
	})
}

// bootstrap runs agent-bootstrap as an administrator of the hub, and returns its standard output.
func (s *site) bootstrap(ctx context.Context, t *testing.T, args ...string) string {
	t.Helper()
	var out, said bytes.Buffer
	cmd := bootstrap.NewCommand(bootstrap.Config{Out: &out, ErrOut: &said})
	cmd.SetArgs(append([]string{"--kubeconfig", s.hub.Kubeconfig()}, args...))
	if err := cmd.ExecuteContext(ctx); err != nil {
		t.Fatalf("agent-bootstrap %s: %v\n%s", strings.Join(args, " "), err, &said)
	}
	return out.String()
}

const gateways = "/apis/cluster.core.oam.dev/v1alpha1/clustergateways"

func (s *site) read(ctx context.Context, t *testing.T) {
	for _, path := range []string{gateways, gateways + "?watch=true&timeoutSeconds=1", gateways + "/" + clusterName, gateways + "/" + clusterName + "/health"} {
		ask(ctx, t, s.gateway.RESTConfig(lab.ViaHub), http.MethodGet, path, "")
	}
}

// call sends a request to the gateway's own endpoint as a user whom only the hub can authenticate.
func (s *site) call(ctx context.Context, t *testing.T) {
	token, err := s.hub.ServiceAccountToken(ctx, metav1.NamespaceDefault, "caller", "cluster-admin")
	if err != nil {
		t.Fatal(err)
	}
	config := rest.AnonymousClientConfig(s.gateway.RESTConfig(lab.ViaOwnEndpoint))
	config.BearerToken = token
	ask(ctx, t, config, http.MethodGet, gateways+"/"+clusterName+"/proxy/version", "")
}

func (s *site) override(ctx context.Context, t *testing.T) {
	for _, healthy := range []string{"false", "true"} {
		ask(ctx, t, s.gateway.RESTConfig(lab.ViaHub), http.MethodPut, gateways+"/"+clusterName+"/health", fmt.Sprintf(
			`{"apiVersion":"cluster.core.oam.dev/v1alpha1","kind":"ClusterGateway","metadata":{"name":%q},"status":{"healthy":%s,"healthyReason":"Test"}}`, clusterName, healthy))
		s.healthy(ctx, t, healthy)
	}
}

// rotate asks the gateway to renew the credentials. On that occasion, the gateway removes the
// rights that earlier versions gave to the account for callers, and follows the cluster's CA.
func (s *site) rotate(ctx context.Context, t *testing.T) {
	rbac := s.edge.Client().RbacV1()
	meta := metav1.ObjectMeta{Name: "cluster-gateway", Namespace: agentNamespace, Labels: map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedByAgentBootstrap}}
	if _, err := rbac.Roles(agentNamespace).Create(ctx, &rbacv1.Role{ObjectMeta: meta}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := rbac.RoleBindings(agentNamespace).Create(ctx, &rbacv1.RoleBinding{
		ObjectMeta: meta, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: meta.Name},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	s.bootstrap(ctx, t, "rotate", clusterName, "--wait", "1m")
	labtest.Within(t, labtest.Timeout, "the rights of the account for callers to be removed", func() error {
		_, err := rbac.Roles(agentNamespace).Get(ctx, meta.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("the Role is there: %v", err)
	})
}

// clusterAPI creates and deletes a kubeconfig as Cluster API does.
func (s *site) clusterAPI(ctx context.Context, t *testing.T) {
	const name = "capi-1"
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := lab.WriteKubeconfig(file, s.edge.Endpoint(), s.edge.CAPEM(), &clientcmdapi.AuthInfo{Token: "of-cluster-api"}); err != nil {
		t.Fatal(err)
	}
	kubeconfig, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	sources := s.hub.Client().CoreV1().Secrets(clusterAPINamespace)
	source, err := sources.Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: name + "-kubeconfig", Labels: map[string]string{"cluster.x-k8s.io/cluster-name": name}},
		Type:       "cluster.x-k8s.io/secret", Data: map[string][]byte{"value": kubeconfig},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	registered := func() error {
		_, err := s.hub.Client().CoreV1().Secrets(hubNamespace).Get(ctx, name, metav1.GetOptions{})
		return err
	}
	labtest.Within(t, labtest.Timeout, "the cluster to be registered", registered)
	if err := sources.Delete(ctx, source.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	labtest.Within(t, labtest.Timeout, "the cluster to be unregistered", func() error {
		err := registered()
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("its Secret is there: %v", err)
	})
}

func (s *site) enroll(ctx context.Context, t *testing.T) {
	if !s.invited.Firewalled() {
		t.Skip(needsNamespace)
	}
	content := s.invite(ctx, t)
	s.invitation = record{cluster: s.invited, account: clusterAccount, objects: documents(t, content), apart: map[string]string{
		"RoleBinding cluster-gateway-agent/cluster-gateway-maintenance": "the base agent's, needed in edge",
	}, until: func(e event) bool {
		// All of it is deleted after that. The agent of the Job may connect once more before its
		// Pod is deleted, and is refused.
		return e.Verb == "delete" && e.ObjectRef.Resource == "clusterrolebindings"
	}}
	s.apply(ctx, t, content)
	s.enrolling = Units(s.invitation.grants(ctx, t))
	job, _ := s.runJob(ctx, t, content, "enroll")
	labtest.Within(t, labtest.Timeout, "the enrollment to end", func() error {
		_, err := s.invited.Client().BatchV1().Jobs(agentNamespace).Get(ctx, job, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("the Job exists: %v", err)
	})
}

func (s *site) invite(ctx context.Context, t *testing.T) (content string) {
	t.Helper()
	return s.bootstrap(ctx, t, "invite", invitedName, "--access", "impersonate", "--tunnel-address",
		net.JoinHostPort(s.lab.HostAddr(s.invited), strconv.Itoa(s.gateway.TunnelPort())))
}

// apply applies an invitation.
func (s *site) apply(ctx context.Context, t *testing.T, content string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "invite.yaml")
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := s.invited.Kubectl(ctx, "apply", "--validate=strict", "-f", file).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// runJob runs the Job of an invitation.
func (s *site) runJob(ctx context.Context, t *testing.T, content, name string) (job string, agent *lab.Agent) {
	t.Helper()
	job = regexp.MustCompile(`konnectivity-agent-enrol-[0-9a-f]{8}`).FindString(content)
	labtest.Within(t, labtest.Timeout, "the Job", func() (err error) { // a controller writes the cluster's CA
		agent, err = s.lab.StartAgentJob(ctx, s.invited, agentNamespace, job, name)
		return err
	})
	return job, agent
}

// revoke deletes the record of an invitation at the moment when the cluster's Secret is written. If
// that is too late, it tries again.
func (s *site) revoke(ctx context.Context, t *testing.T) {
	if !s.invited.Firewalled() {
		t.Skip(needsNamespace)
	}
	kubeconfig, err := s.invited.BastionKubeconfig()
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		s.bootstrap(ctx, t, "unregister", invitedName, "--cluster-kubeconfig", kubeconfig)
		content := s.invite(ctx, t)
		s.apply(ctx, t, content)
		registering := s.atState(ctx, t, registration.InvitationRegistering)
		_, agent := s.runJob(ctx, t, content, fmt.Sprintf("revoked-%d", i))
		state := <-registering
		if err := agent.Kill(); err != nil {
			t.Error(err)
		}
		// The time in between is at least that of a request to the cluster.
		deadline := time.Now().Add(5 * time.Second)
		for time.Now().Before(deadline) {
			if s.deletedSecret(t) {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
		t.Logf("too late: the invitation was %s", state)
	}
	t.Error("the gateway did not delete the Secret of a cluster whose invitation was revoked")
}

// restart stops the gateway in order, and starts it again.
func (s *site) restart(ctx context.Context, t *testing.T) {
	if err := s.gateway.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := s.gateway.Start(ctx); err != nil {
		t.Fatal(err)
	}
}

// atState deletes the record of the invitation as soon as it has this state or a later one, and
// sends that state.
func (s *site) atState(ctx context.Context, t *testing.T, state registration.InvitationState) <-chan registration.InvitationState {
	t.Helper()
	secrets := s.hub.Client().CoreV1().Secrets(hubNamespace)
	name := registration.InvitationSecret(invitedName)
	watch, err := secrets.Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name})
	if err != nil {
		t.Fatal(err)
	}
	seen := make(chan registration.InvitationState, 1)
	go func() {
		defer close(seen)
		defer watch.Stop()
		for e := range watch.ResultChan() {
			secret, ok := e.Object.(*corev1.Secret)
			if !ok {
				continue
			}
			record, err := registration.ReadInvitation(secret)
			if err != nil || record.State != state && record.State != registration.InvitationDone {
				continue
			}
			if err := secrets.Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
				t.Error(err)
			}
			seen <- record.State
			return
		}
	}()
	return seen
}

// deletedSecret reports whether the gateway has deleted a Secret.
func (s *site) deletedSecret(t *testing.T) bool {
	t.Helper()
	events, err := s.hub.AuditEvents()
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(events, func(e event) bool {
		return e.User.Username == hubAccount && e.Verb == "delete" && e.ObjectRef.Resource == "secrets"
	})
}

// documents returns the objects of a YAML file.
func documents(t *testing.T, content string) []*unstructured.Unstructured {
	t.Helper()
	var all []*unstructured.Unstructured
	decoder := yaml.NewYAMLOrJSONDecoder(strings.NewReader(content), len(content))
	for {
		o := &unstructured.Unstructured{}
		switch err := decoder.Decode(&o.Object); {
		case errors.Is(err, io.EOF):
			return all
		case err != nil:
			t.Fatal(err)
		case len(o.Object) > 0:
			all = append(all, o)
		}
	}
}

func (s *site) doctor(ctx context.Context, t *testing.T) { s.bootstrap(ctx, t, "doctor", clusterName) }

// ask sends a request that must succeed, and returns the response's body.
func ask(ctx context.Context, t *testing.T, config *rest.Config, method, path, body string) string {
	t.Helper()
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(ctx, method, config.Host+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s %s: %d %s (%v)", method, path, resp.StatusCode, answer, err)
	}
	return string(answer)
}
