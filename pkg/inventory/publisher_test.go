// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package inventory

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/klog/v2/ktesting"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
)

const (
	namespace = "fleet"
	server    = "https://gateway.example:8443"
)

// registered are the clusters of a test.
type registered struct {
	mu       sync.Mutex
	clusters map[string]*cluster.Cluster
}

func (r *registered) Get(name string) (*cluster.Cluster, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c, ok := r.clusters[name]
	return c, ok
}

func (r *registered) List() []*cluster.Cluster {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Values(r.clusters))
}

func (r *registered) set(name string, change func(*corev1.Secret)) {
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Namespace: "cluster-gateway-system", UID: types.UID("uid-of-" + name),
			Labels: map[string]string{
				v1alpha1.LabelCredentialType: string(v1alpha1.CredentialTypeServiceAccountToken), "env": "prod", "app.kubernetes.io/managed-by": "agent-bootstrap",
			},
			Annotations: map[string]string{v1alpha1.AnnotationHealthy: "true", v1alpha1.AnnotationHealthyReason: v1alpha1.ReasonHealthy, v1alpha1.AnnotationVersion: "v1.36.1"},
		},
		Data: map[string][]byte{"endpoint": []byte("https://SECRET-endpoint:6443"), "token": []byte("SECRET-token-of-the-cluster"), "proxy-url": []byte("https://joe:SECRET-password@proxy:8080")},
	}
	if change != nil {
		change(secret)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clusters[name] = cluster.Parse(secret, cluster.ParseOptions{})
}

func (r *registered) remove(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.clusters, name)
}

type fixture struct {
	*registered
	client    *dynamicfake.FakeDynamicClient
	publisher *Publisher
}

func newFixture(t *testing.T, selector string, existing ...runtime.Object) *fixture {
	t.Helper()
	parsed, err := labels.Parse(selector)
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{registered: &registered{clusters: map[string]*cluster.Cluster{}}}
	f.client = dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{Resource(): "ClusterProfileList"}, existing...)
	f.publisher = NewPublisher(Config{
		Client: f.client, Namespace: namespace, Manager: DefaultManager, Selector: parsed, Clusters: f.registered,
		Access: func() (Access, error) { return Access{Server: server, CAData: []byte("the CA")}, nil },
		Logger: ktesting.NewLogger(t, ktesting.NewConfig()),
	})
	return f
}

// sync compares everything once, and returns the verbs of the writes.
func (f *fixture) sync(t *testing.T) (writes []string, failed map[string]bool) {
	t.Helper()
	f.client.ClearActions()
	failed = map[string]bool{}
	if err := f.publisher.syncAll(t.Context(), failed); err != nil {
		t.Fatal(err)
	}
	for _, a := range f.client.Actions() {
		if a.GetVerb() == "get" || a.GetVerb() == "list" {
			continue
		}
		verb := a.GetVerb()
		if a.GetSubresource() != "" {
			verb += "/" + a.GetSubresource()
		}
		writes = append(writes, verb)
	}
	return writes, failed
}

// get returns a profile in the form in which it is stored.
func (f *fixture) get(t *testing.T, name string) *unstructured.Unstructured {
	t.Helper()
	o, err := f.publisher.profiles.Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func text(t *testing.T, o *unstructured.Unstructured) string {
	t.Helper()
	data, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func profile(t *testing.T, o *unstructured.Unstructured) *Profile {
	t.Helper()
	p := &Profile{}
	if err := json.Unmarshal([]byte(text(t, o)), p); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPublish(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "")
	f.set("edge-1", nil)
	if writes, failed := f.sync(t); !slices.Equal(writes, []string{"create", "update/status"}) || len(failed) > 0 {
		t.Fatalf("writes %v, failed %v", writes, failed)
	}
	got := f.get(t, "edge-1")
	p := profile(t, got)
	if want := map[string]string{"env": "prod", "x-k8s.io/cluster-manager": "cluster-gateway", "app.kubernetes.io/managed-by": "cluster-gateway"}; !maps.Equal(p.Metadata.Labels, want) {
		t.Errorf("labels %v", p.Metadata.Labels)
	}
	if p.Spec.DisplayName != "edge-1" || p.Spec.ClusterManager.Name != "cluster-gateway" || p.Status.Version.Kubernetes != "v1.36.1" {
		t.Errorf("%+v", p)
	}
	if c := p.Status.Conditions; len(c) != 1 || c[0].Type != "ControlPlaneHealthy" || c[0].Status != metav1.ConditionTrue || c[0].Reason != "Healthy" || c[0].LastTransitionTime.IsZero() {
		t.Errorf("conditions %+v", c)
	}
	if want := []Property{{PropertyIdentity, "credential"}, {PropertyRoute, "direct"}, {PropertyUID, "uid-of-edge-1"}}; !slices.Equal(p.Status.Properties, want) {
		t.Errorf("properties %v", p.Status.Properties)
	}
	a := p.Status.AccessProviders
	if len(a) != 1 || a[0].Name != AccessProvider || a[0].Cluster.Server != server+v1alpha1.ProxyPath("edge-1") || string(a[0].Cluster.CertificateAuthorityData) != "the CA" {
		t.Errorf("access providers %+v", a)
	}
	if s := text(t, got); strings.Contains(s, "SECRET-") {
		t.Errorf("the profile has what is the cluster's own: %s", s)
	}
	if writes, _ := f.sync(t); len(writes) > 0 {
		t.Errorf("nothing has changed, and the writes are %v", writes)
	}
}

// TestPublishFollows checks what happens to a profile when the cluster changes, and that what
// others have written into it stays.
func TestPublishFollows(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "")
	f.set("edge-1", nil)
	f.sync(t)
	before := profile(t, f.get(t, "edge-1"))

	others := f.get(t, "edge-1")
	others.SetLabels(map[string]string{"env": "prod", "mine": "yes", "app.kubernetes.io/managed-by": "cluster-gateway", "x-k8s.io/cluster-manager": "cluster-gateway"})
	status := others.Object["status"].(map[string]any)
	status["conditions"] = append(status["conditions"].([]any), map[string]any{"type": "Joined", "status": "True", "reason": "Yes", "message": "", "lastTransitionTime": "2026-02-03T04:05:06Z"})
	status["properties"] = append(status["properties"].([]any), map[string]any{"name": "zone", "value": "a", "lastObservedTime": "2026-02-03T04:05:06Z"})
	status["accessProviders"] = append(status["accessProviders"].([]any), map[string]any{"name": "vpn", "cluster": map[string]any{"server": "https://vpn", "tls-server-name": "a"}})
	if _, err := f.publisher.profiles.Update(t.Context(), others, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	f.set("edge-1", func(s *corev1.Secret) {
		delete(s.Labels, "env")
		s.Labels["team"] = "web"
		s.Annotations[v1alpha1.AnnotationHealthy], s.Annotations[v1alpha1.AnnotationHealthyReason] = "false", v1alpha1.ReasonNoAgent
		s.Annotations[v1alpha1.AnnotationVersion] = "v1.37.0\x1b[31m" + strings.Repeat("x", 5000)
	})
	if writes, failed := f.sync(t); !slices.Equal(writes, []string{"update", "update/status"}) || len(failed) > 0 {
		t.Fatalf("writes %v, failed %v", writes, failed)
	}
	got := f.get(t, "edge-1")
	p := profile(t, got)
	if want := map[string]string{"team": "web", "mine": "yes", "x-k8s.io/cluster-manager": "cluster-gateway", "app.kubernetes.io/managed-by": "cluster-gateway"}; !maps.Equal(p.Metadata.Labels, want) {
		t.Errorf("labels %v", p.Metadata.Labels)
	}
	if v := p.Status.Version.Kubernetes; len(v) > maxProperty || strings.Contains(v, "\x1b") || !strings.HasPrefix(v, "v1.37.0") {
		t.Errorf("the version is %q", v)
	}
	conditions := map[string]metav1.Condition{}
	for _, c := range p.Status.Conditions {
		conditions[c.Type] = c
	}
	if c := conditions["ControlPlaneHealthy"]; c.Status != metav1.ConditionFalse || c.Reason != v1alpha1.ReasonNoAgent || c.LastTransitionTime.Before(&before.Status.Conditions[0].LastTransitionTime) {
		t.Errorf("the condition is %+v", c)
	}
	if conditions["Joined"].Status != metav1.ConditionTrue {
		t.Errorf("the condition of others is gone: %v", conditions)
	}
	for _, want := range []string{`"lastObservedTime":"2026-02-03T04:05:06Z"`, `"tls-server-name":"a"`} {
		if s := text(t, got); !strings.Contains(s, want) {
			t.Errorf("no %s of others in %s", want, s)
		}
	}
	if writes, _ := f.sync(t); len(writes) > 0 {
		t.Errorf("nothing has changed, and the writes are %v", writes)
	}
}

// TestPublishInvalid publishes a cluster that cannot be used.
func TestPublishInvalid(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "")
	f.set("edge-1", func(s *corev1.Secret) { s.Data["endpoint"] = []byte("http://SECRET-endpoint") })
	f.set("edge-2", func(s *corev1.Secret) { s.Annotations = nil })
	f.sync(t)
	for name, want := range map[string]string{"edge-1": "False InvalidSecret", "edge-2": "Unknown NotProbed"} {
		got := f.get(t, name)
		if c := profile(t, got).Status.Conditions[0]; string(c.Status)+" "+c.Reason != want {
			t.Errorf("%s: %+v", name, c)
		}
		if s := text(t, got); strings.Contains(s, "SECRET-token") || strings.Contains(s, "SECRET-password") {
			t.Errorf("%s", s)
		}
	}
}

func existing(name, manager string, with map[string]string) *unstructured.Unstructured {
	o := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "multicluster.x-k8s.io/v1alpha1", "kind": "ClusterProfile",
		"spec": map[string]any{"displayName": "theirs", "clusterManager": map[string]any{"name": manager}},
	}}
	o.SetName(name)
	o.SetNamespace(namespace)
	o.SetLabels(with)
	return o
}

// TestPublishLeavesOthersAlone has profiles of others with the names of clusters, and of clusters
// that do not exist.
func TestPublishLeavesOthersAlone(t *testing.T) {
	t.Parallel()
	ours := map[string]string{"x-k8s.io/cluster-manager": "cluster-gateway", "app.kubernetes.io/managed-by": "cluster-gateway"}
	others := []runtime.Object{
		existing("other-manager", "ocm", ours), existing("other-manager-gone", "ocm", ours),
		existing("no-label", "cluster-gateway", map[string]string{"x-k8s.io/cluster-manager": "cluster-gateway"}),
		existing("no-label-gone", "cluster-gateway", map[string]string{"x-k8s.io/cluster-manager": "cluster-gateway"}),
	}
	f := newFixture(t, "", append(others, existing("ours-gone", "cluster-gateway", ours))...)
	f.set("other-manager", nil)
	f.set("no-label", nil)
	writes, failed := f.sync(t)
	if !slices.Equal(writes, []string{"delete"}) || len(failed) > 0 {
		t.Errorf("writes %v, failed %v", writes, failed)
	}
	if len(f.publisher.reported) != 2 || !strings.Contains(f.publisher.reported["other-manager"], `its cluster manager is "ocm", and the gateway did not create it`) {
		t.Errorf("reported %q", f.publisher.reported)
	}
	for _, o := range others {
		want := o.(*unstructured.Unstructured)
		if got := f.get(t, want.GetName()); text(t, got) != text(t, want) {
			t.Errorf("%s became %s", text(t, want), text(t, got))
		}
	}
	if _, err := f.publisher.profiles.Get(t.Context(), "ours-gone", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the profile of a cluster that is gone: %v", err)
	}
}

func TestPublishSelects(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "env=prod")
	f.set("edge-1", nil)
	f.set("edge-2", func(s *corev1.Secret) { s.Labels["env"] = "test" })
	f.sync(t)
	list, err := f.publisher.profiles.List(t.Context(), metav1.ListOptions{})
	if err != nil || len(list.Items) != 1 || list.Items[0].GetName() != "edge-1" {
		t.Fatalf("%v %v", list, err)
	}
	f.set("edge-1", func(s *corev1.Secret) { s.Labels["env"] = "test" })
	if writes, _ := f.sync(t); !slices.Equal(writes, []string{"delete"}) {
		t.Errorf("writes %v", writes)
	}
}

// TestRun follows changes, with a hub that refuses the first write of each profile.
func TestRun(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "")
	written := make(chan string, 100)
	refused := false
	f.client.PrependReactor("*", "clusterprofiles", func(a clienttesting.Action) (bool, runtime.Object, error) {
		switch a.GetVerb() {
		case "create":
			written <- "create"
		case "update":
			if !refused {
				refused = true
				return true, nil, apierrors.NewConflict(Resource().GroupResource(), "edge-1", errors.New("changed"))
			}
			if a.GetSubresource() == "status" {
				written <- "status"
			}
		case "delete":
			written <- "delete"
		}
		return false, nil, nil
	})
	f.set("edge-1", nil)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.publisher.Run(ctx) }()
	for _, want := range []string{"create", "status"} {
		if got := <-written; got != want {
			t.Fatalf("got %s, want %s", got, want)
		}
		if want == "create" { // the status was refused
			f.publisher.ClusterChanged("edge-1", nil)
		}
	}
	f.remove("edge-1")
	f.publisher.ClusterChanged("edge-1", nil)
	if got := <-written; got != "delete" {
		t.Fatalf("got %s", got)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	f.publisher.ClusterChanged("edge-2", nil)
	if f.publisher.changed != nil {
		t.Error("a Publisher that does not run collects changes")
	}
}

func TestExplain(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "")
	for want, err := range map[string]error{
		"install the CustomResourceDefinition": apierrors.NewNotFound(Resource().GroupResource(), ""),
		"apply the component":                  apierrors.NewForbidden(Resource().GroupResource(), "", errors.New("no")),
		"plain":                                errors.New("plain"),
	} {
		if got := fmt.Sprint(f.publisher.explain(err)); !strings.Contains(got, want) {
			t.Errorf("%s: no %q", got, want)
		}
	}
}
