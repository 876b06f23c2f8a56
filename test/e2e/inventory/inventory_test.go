// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Package inventory tests the ClusterProfiles of a gateway on a real hub, with a consumer that uses
// the code of the Cluster Inventory API.
package inventory

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/oam-dev/cluster-gateway/manifests"
	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/test/lab"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

const (
	hubNamespace = "cluster-gateway-system"
	// namespace is that of the component manifests/gateway/clusterprofiles.
	namespace = "cluster-inventory"
	audience  = "cluster-gateway"
	consumer  = "consumer"
	// account is the gateway's.
	account = "system:serviceaccount:" + hubNamespace + ":cluster-gateway"
	group   = "multicluster.x-k8s.io"
)

// env is the lab.
type env struct {
	lab          *lab.Lab
	hub          *lab.Cluster
	direct, edge *lab.Cluster
	profiles     dynamic.ResourceInterface
	// program is the consumer, and plugin its credential plugin.
	program, plugin string
	gateway         *lab.Gateway
}

// shared is set before the first test, and does not change after that.
var shared *env

func TestMain(m *testing.M) { labtest.Main(m, start) }

func start(ctx context.Context, l *lab.Lab) error {
	e := &env{lab: l, program: filepath.Join(l.Dir(), "inventory"), plugin: filepath.Join(l.Dir(), "agent-bootstrap")}
	var group errgroup.Group
	for _, c := range []struct {
		into    **lab.Cluster
		options lab.ClusterOptions
	}{
		{&e.hub, lab.ClusterOptions{Name: "hub", NoControllerManager: true, NoKwok: true, AuditUsers: []string{account}}},
		{&e.direct, lab.ClusterOptions{Name: "direct", NoKwok: true}},
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
	if err := e.build(ctx); err != nil {
		return err
	}
	if err := e.startGateway(ctx); err != nil {
		return err
	}
	shared = e
	return nil
}

// tools is the module of the consumer.
const tools = "../../../hack/tools/inventory"

func (e *env) build(ctx context.Context) error {
	for dir, args := range map[string][]string{tools: {"-o", e.program, "."}, "../../..": {"-o", e.plugin, "./cmd/agent-bootstrap"}} {
		cmd := exec.CommandContext(ctx, "go", append([]string{"build"}, args...)...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("go build in %s: %w\n%s", dir, err, out)
		}
	}
	return nil
}

// startGateway installs the definition of ClusterProfiles, the component with the gateway's rights,
// and a gateway with a cluster on each route.
func (e *env) startGateway(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, e.program, "-print-crd")
	cmd.Dir = tools
	definition, err := cmd.Output()
	if err != nil {
		return err
	}
	if err := e.apply(ctx, definition, "-f", "-"); err != nil {
		return err
	}
	if out, err := e.hub.Kubectl(ctx, "wait", "--for=condition=Established", "crd/clusterprofiles.multicluster.x-k8s.io").CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	for _, n := range []string{namespace, clusterAPINamespace, "default", hubNamespace} {
		if err := e.hub.EnsureNamespace(ctx, n); err != nil {
			return err
		}
	}
	for _, component := range []string{"clusterprofiles", "clusterapi"} {
		if err := e.apply(ctx, nil, "-f", "../../../manifests/gateway/"+component+"/rbac.yaml"); err != nil {
			return err
		}
	}
	client, err := dynamic.NewForConfig(e.hub.RESTConfig())
	if err != nil {
		return err
	}
	e.profiles = client.Resource(schema.GroupVersionResource{Group: group, Version: "v1alpha1", Resource: "clusterprofiles"}).Namespace(namespace)
	binary, err := lab.BuildGateway(ctx, e.lab.Dir(), os.Getenv("E2E_PLAIN_GATEWAY") == "")
	if err != nil {
		return err
	}
	port, err := e.lab.FreePort()
	if err != nil {
		return err
	}
	e.gateway, err = e.lab.StartGateway(ctx, lab.GatewayOptions{Hub: e.hub, Binary: binary, ExtraArgs: []string{
		"--api-audiences=" + audience, "--cluster-api-namespaces=" + clusterAPINamespace, "--cluster-profiles-namespace=" + namespace, fmt.Sprintf("--cluster-profiles-server=https://127.0.0.1:%d/", port),
	}, Port: port})
	return err
}

func (e *env) apply(ctx context.Context, input []byte, args ...string) error {
	cmd := e.hub.Kubectl(ctx, append([]string{"apply", "--server-side"}, args...)...)
	cmd.Stdin = bytes.NewReader(input)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("kubectl apply %v: %w\n%s", args, err, out)
	}
	return nil
}

// TestClusterProfiles reads the profiles as a consumer does, and uses the clusters with them.
func TestClusterProfiles(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	e := shared
	foreign := e.foreign(ctx, t)
	if err := e.gateway.RegisterAPIService(ctx); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]*lab.Cluster{"direct": e.direct, "edge": e.edge} {
		if err := e.gateway.RegisterCluster(ctx, name, c, name == "edge"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := e.gateway.StartAgent(ctx, "edge", e.edge); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"direct", "edge"} {
		e.awaitHealthy(ctx, t, name)
	}
	e.consume(ctx, t)
	e.noCredential(ctx, t)

	// The labels of a cluster are those of its profile.
	if out, err := e.hub.Kubectl(ctx, "label", "secret", "direct", "-n", hubNamespace, "env=prod").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	labtest.Within(t, labtest.Timeout, "the profile to have the label", func() error {
		p, err := e.profiles.Get(ctx, "direct", metav1.GetOptions{})
		if err == nil && p.GetLabels()["env"] != "prod" {
			err = fmt.Errorf("the labels are %v", p.GetLabels())
		}
		return err
	})
	if err := e.hub.DeleteSecret(ctx, "edge"); err != nil {
		t.Fatal(err)
	}
	labtest.Within(t, labtest.Timeout, "the profile of a cluster that is gone to be deleted", func() error {
		_, err := e.profiles.Get(ctx, "edge", metav1.GetOptions{})
		if err == nil {
			return errors.New("it exists")
		}
		if !apierrors.IsNotFound(err) {
			return err
		}
		return nil
	})
	got, err := e.profiles.Get(ctx, foreign.GetName(), metav1.GetOptions{})
	if err != nil || got.GetResourceVersion() != foreign.GetResourceVersion() {
		t.Errorf("the profile of another manager was changed: %v, %v", got, err)
	}
	e.rights(t)
}

// foreign creates the profile of a cluster that another manager has.
func (e *env) foreign(ctx context.Context, t *testing.T) *unstructured.Unstructured {
	t.Helper()
	o := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": group + "/v1alpha1", "kind": "ClusterProfile", "metadata": map[string]any{"name": "foreign"},
		"spec": map[string]any{"clusterManager": map[string]any{"name": "another"}},
	}}
	o.SetLabels(map[string]string{"x-k8s.io/cluster-manager": "cluster-gateway", "app.kubernetes.io/managed-by": "cluster-gateway"})
	created, err := e.profiles.Create(ctx, o, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return created
}

func (e *env) awaitHealthy(ctx context.Context, t *testing.T, name string) {
	t.Helper()
	labtest.Within(t, labtest.Timeout, "the profile of "+name+" to be healthy", func() error {
		p, err := e.profiles.Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		conditions, _, err := unstructured.NestedSlice(p.Object, "status", "conditions")
		for _, c := range conditions {
			if c, ok := c.(map[string]any); ok && c["type"] == "ControlPlaneHealthy" && c["status"] == "True" {
				return err
			}
		}
		return fmt.Errorf("the conditions are %v: %w", conditions, err)
	})
}

// consume runs the consumer as a ServiceAccount that may read the profiles and use the clusters.
func (e *env) consume(ctx context.Context, t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	hubToken, err := e.hub.ServiceAccountToken(ctx, namespace, consumer, "")
	if err != nil {
		t.Fatal(err)
	}
	e.grant(ctx, t)
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: []string{audience}}}
	token, err := e.hub.Client().CoreV1().ServiceAccounts(namespace).CreateToken(ctx, consumer, request, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	kubeconfig, tokenFile, providers := filepath.Join(dir, "hub"), filepath.Join(dir, "token"), filepath.Join(dir, "providers")
	if err := lab.WriteKubeconfig(kubeconfig, e.hub.Endpoint(), e.hub.CAPEM(), &clientcmdapi.AuthInfo{Token: hubToken}); err != nil {
		t.Fatal(err)
	}
	file, err := json.Marshal(map[string]any{"providers": []any{map[string]any{"name": "cluster-gateway", "execConfig": map[string]any{
		"apiVersion": "client.authentication.k8s.io/v1", "command": e.plugin, "args": []string{"credential", "--token-file", tokenFile},
	}}}})
	if err != nil {
		t.Fatal(err)
	}
	for path, content := range map[string][]byte{tokenFile: []byte(token.Status.Token), providers: file} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	args := []string{"-kubeconfig", kubeconfig, "-namespace", namespace, "-providers", providers, "direct", "edge"}
	e.listAndWatch(ctx, t, args)
	e.reconcile(ctx, t, args)
}

// startConsumer starts the consumer. lines are what it writes, and stderr its errors once it has
// ended.
func (e *env) startConsumer(ctx context.Context, t *testing.T, args []string) (cmd *exec.Cmd, lines *bufio.Scanner, stderr *bytes.Buffer) {
	t.Helper()
	cmd, stderr = exec.CommandContext(ctx, e.program, args...), &bytes.Buffer{}
	cmd.Stderr = stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, bufio.NewScanner(out), stderr
}

// reconcile runs a controller of multicluster-runtime. It gets the Pods that exist, and those that
// are created later.
func (e *env) reconcile(ctx context.Context, t *testing.T, args []string) {
	t.Helper()
	cmd, lines, stderr := e.startConsumer(ctx, t, append([]string{"-controller"}, args...))
	await := func(prefix string) {
		wanted := map[string]bool{}
		for _, c := range []*lab.Cluster{e.direct, e.edge} {
			wanted[c.Name()+" reconciled "+prefix+c.Name()] = true
		}
		for len(wanted) > 0 && lines.Scan() {
			delete(wanted, lines.Text())
		}
		for line := range wanted {
			t.Errorf("the controller did not write %q", line)
		}
	}
	await("pod-of-")
	for _, c := range []*lab.Cluster{e.direct, e.edge} {
		createPod(ctx, t, c, "later-pod-of-"+c.Name())
	}
	await("later-pod-of-")
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %s", err, stderr)
	}
}

// listAndWatch runs the consumer, which uses one cluster after another.
func (e *env) listAndWatch(ctx context.Context, t *testing.T, args []string) {
	t.Helper()
	cmd, lines, stderr := e.startConsumer(ctx, t, args)
	for _, c := range []*lab.Cluster{e.direct, e.edge} {
		pod := "pod-of-" + c.Name()
		if !lines.Scan() || !strings.HasPrefix(lines.Text(), c.Name()+" listed ") {
			t.Errorf("got %q, want the list of %s", lines.Text(), c.Name())
			break
		}
		createPod(ctx, t, c, pod)
		if !lines.Scan() || lines.Text() != c.Name()+" watched "+pod {
			t.Errorf("got %q, want %s in the watch of %s", lines.Text(), pod, c.Name())
			break
		}
	}
	if t.Failed() {
		_ = cmd.Process.Kill() // it may be watching
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %s", err, stderr)
	}
}

// grant allows the consumer to read profiles, and to use the two clusters.
func (e *env) grant(ctx context.Context, t *testing.T) {
	t.Helper()
	for _, args := range [][]string{
		{"role", consumer, "-n", namespace, "--verb=get", "--resource=clusterprofiles.multicluster.x-k8s.io"},
		{"rolebinding", consumer, "-n", namespace, "--role=" + consumer, "--serviceaccount=" + namespace + ":" + consumer},
		{"clusterrolebinding", consumer, "--clusterrole=" + consumer, "--serviceaccount=" + namespace + ":" + consumer},
	} {
		if out, err := e.hub.Kubectl(ctx, append([]string{"create"}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("kubectl create %v: %v: %s", args, err, out)
		}
	}
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: consumer}, Rules: []rbacv1.PolicyRule{{
		APIGroups: []string{v1alpha1.GroupName}, Resources: []string{"clustergateways/proxy"}, ResourceNames: []string{"direct", "edge"}, Verbs: []string{"get"},
	}}}
	if _, err := e.hub.Client().RbacV1().ClusterRoles().Create(ctx, role, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: "system:serviceaccount:" + namespace + ":" + consumer,
		ResourceAttributes: &authorizationv1.ResourceAttributes{
			Group: v1alpha1.GroupName, Resource: "clustergateways", Subresource: "proxy", Name: "edge", Verb: "get",
		},
	}}
	labtest.Within(t, labtest.Timeout, "the hub to use the binding", func() error {
		answer, err := e.hub.Client().AuthorizationV1().SubjectAccessReviews().Create(ctx, review, metav1.CreateOptions{})
		if err == nil && !answer.Status.Allowed {
			err = errors.New("not allowed")
		}
		return err
	})
}

func createPod(ctx context.Context, t *testing.T, c *lab.Cluster, name string) {
	t.Helper()
	labtest.Within(t, labtest.Timeout, "a Pod to be accepted", func() error {
		_, err := c.Client().CoreV1().Pods(metav1.NamespaceDefault).Create(ctx, &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: "none"}}},
		}, metav1.CreateOptions{})
		return err
	})
}

// noCredential reads every object of the hub, in every namespace. The clusters' tokens are in their
// Secrets in the gateway's namespace, and nowhere else.
func (e *env) noCredential(ctx context.Context, t *testing.T) {
	t.Helper()
	var tokens []string
	for _, name := range []string{"direct", "edge"} {
		secret, err := e.hub.Client().CoreV1().Secrets(hubNamespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		token := secret.Data[v1alpha1.SecretKeyToken]
		if len(token) < 100 {
			t.Fatalf("the Secret of %s has no token", name)
		}
		// The last characters in base64 depend on what follows.
		tokens = append(tokens, string(token), base64.StdEncoding.EncodeToString(token)[:90])
	}
	lists, err := e.hub.Client().Discovery().ServerPreferredResources()
	if err != nil {
		t.Fatal(err)
	}
	client, err := dynamic.NewForConfig(e.hub.RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	found, read := map[string]bool{}, map[string]bool{}
	for _, list := range lists {
		version, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range list.APIResources {
			if !slices.Contains(r.Verbs, "list") {
				continue
			}
			objects, err := client.Resource(version.WithResource(r.Name)).List(ctx, metav1.ListOptions{})
			if err != nil {
				t.Errorf("%s: %v", r.Name, err)
				continue
			}
			for i := range objects.Items {
				o := &objects.Items[i]
				read[r.Name] = true
				text, err := json.Marshal(o)
				if err != nil {
					t.Fatal(err)
				}
				if slices.ContainsFunc(tokens, func(token string) bool { return bytes.Contains(text, []byte(token)) }) {
					found[r.Name+" "+o.GetNamespace()+"/"+o.GetName()] = true
				}
			}
		}
	}
	if want := []string{"secrets " + hubNamespace + "/direct", "secrets " + hubNamespace + "/edge"}; !slices.Equal(slices.Sorted(maps.Keys(found)), want) {
		t.Errorf("the clusters' tokens are in %v, want %v", slices.Sorted(maps.Keys(found)), want)
	}
	for _, want := range []string{"clusterprofiles", "clustergateways", "configmaps", "secrets", "events"} {
		if !read[want] {
			t.Errorf("no %s were read", want)
		}
	}
}

// rights compares what the gateway did with ClusterProfiles with the rules of the component.
func (e *env) rights(t *testing.T) {
	t.Helper()
	objects, err := manifests.Objects(manifests.GatewayClusterProfiles)
	if err != nil {
		t.Fatal(err)
	}
	allowed := map[string]bool{}
	for _, o := range objects {
		rules, _, _ := unstructured.NestedSlice(o.Object, "rules")
		for _, rule := range rules {
			resources, _, _ := unstructured.NestedStringSlice(rule.(map[string]any), "resources")
			verbs, _, _ := unstructured.NestedStringSlice(rule.(map[string]any), "verbs")
			for _, verb := range verbs {
				allowed[verb+" "+strings.Join(resources, ",")] = true
			}
		}
	}
	events, err := e.hub.AuditEvents()
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	for i := range events {
		r := events[i].ObjectRef
		if events[i].User.Username != account || r == nil || r.APIGroup != group {
			continue
		}
		if r.Namespace != namespace {
			t.Errorf("the gateway sent %s %s", events[i].Verb, events[i].RequestURI)
		}
		resource := r.Resource
		if r.Subresource != "" {
			resource += "/" + r.Subresource
		}
		used[events[i].Verb+" "+resource] = true
	}
	if a, b := slices.Sorted(maps.Keys(allowed)), slices.Sorted(maps.Keys(used)); !slices.Equal(a, b) {
		t.Errorf("the component allows %v, and the gateway did %v", a, b)
	}
}
