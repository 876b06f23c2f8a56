// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/tools/cache"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/test/lab"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

// resourceCase is something that users do with the ClusterGateways themselves.
type resourceCase struct {
	name string
	run  func(ctx context.Context, t *testing.T, k *kubectl, door lab.Via)
}

func resourceMatrix() []resourceCase {
	return []resourceCase{
		{"get", testGatewayTable},
		{"get -o yaml", testGatewayYAML},
		{"selectors", testGatewaySelectors},
		{"get -w", testGatewayWatch},
		{"informer", testGatewayInformer},
		{"writes are refused", testGatewayWrites},
		{"explain", testGatewayExplain},
		{"api-resources", testGatewayAPIResources},
		{"health", testGatewayHealth},
	}
}

// TestClusterGateways runs kubectl against the resource, at both endpoints.
func TestClusterGateways(t *testing.T) {
	for _, door := range doors() {
		t.Run(string(door), func(t *testing.T) {
			k := newKubectl(t, shared.embedded.RESTConfig(door))
			for _, c := range resourceMatrix() {
				t.Run(c.name, func(t *testing.T) { c.run(bounded(t, caseTimeout), t, k, door) })
			}
		})
	}
}

func testGatewayTable(ctx context.Context, t *testing.T, k *kubectl, _ lab.Via) {
	table := k.run(ctx, t, "get", "clustergateways")
	header, _, _ := strings.Cut(table, "\n")
	if got, want := strings.Fields(header), []string{"NAME", "ROUTE", "HEALTHY", "VERSION", "ENDPOINT", "AGE"}; !slices.Equal(got, want) {
		t.Errorf("the columns are %q, want %q", got, want)
	}
	mustContain(t, table, "direct", "edge", "tunnel", shared.direct.Endpoint(), shared.edge.Endpoint())
	mustContain(t, k.run(ctx, t, "get", "cg,cgw", "-o", "wide"), "CREDENTIAL", "EXPIRES", "ServiceAccountToken")
	mustContain(t, k.run(ctx, t, "get", "clustergateway", "direct", "-o", "name"), "clustergateway.cluster.core.oam.dev/direct")
	mustContain(t, k.run(ctx, t, "get", "cluster-gateway", "-o", "name"), "/direct", "/edge")
	missing := k.try(ctx, t, "", "get", "cgw", "missing")
	if missing.code != 1 || !strings.Contains(missing.stderr, `clustergateways.cluster.core.oam.dev "missing" not found`) {
		t.Error(missing)
	}
	mustContain(t, k.run(ctx, t, "describe", "clustergateway", "direct"), "Name:", "Access:")
}

func testGatewayYAML(ctx context.Context, t *testing.T, k *kubectl, _ lab.Via) {
	secret, err := shared.embeddedHub.Client().CoreV1().Secrets(namespaceOfSecrets).Get(ctx, "direct", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	token := string(secret.Data["token"])
	if token == "" {
		t.Fatal("there is no token to look for")
	}
	for _, args := range [][]string{
		{"get", "clustergateway", "direct", "-o", "yaml", "--show-managed-fields"},
		{"get", "clustergateways", "-o", "json"},
	} {
		out := k.run(ctx, t, args...)
		mustContain(t, out, "ServiceAccountToken", shared.direct.Endpoint(), "caBundle")
		if strings.Contains(out, token) || strings.Contains(out, "token:") {
			t.Errorf("kubectl %s shows the credential:\n%s", strings.Join(args, " "), out)
		}
	}
}

func testGatewaySelectors(ctx context.Context, t *testing.T, k *kubectl, _ lab.Via) {
	for selector, want := range map[string][]string{
		"-l=cluster.core.oam.dev/cluster-endpoint-type=ClusterProxy":  {"edge"},
		"-l=cluster.core.oam.dev/cluster-endpoint-type!=ClusterProxy": {"direct"},
		"-l=no=such":                                                    nil,
		"--field-selector=metadata.name=direct":                         {"direct"},
		"--field-selector=metadata.name!=direct":                        {"edge"},
		"--field-selector=spec.access.endpoint.type=ClusterProxy":       {"edge"},
		"--field-selector=spec.access.endpoint.type=Const":              {"direct"},
		"--field-selector=spec.access.credential.type=X509Certificate":  nil,
		"--field-selector=spec.access.credential.type!=X509Certificate": {"direct", "edge"},
	} {
		out := strings.ReplaceAll(k.run(ctx, t, "get", "clustergateways", "-o", "name", selector), "clustergateway.cluster.core.oam.dev/", "")
		// Clusters of other tests may be registered.
		got := slices.DeleteFunc(strings.Fields(out), func(name string) bool { return name != "direct" && name != "edge" })
		if !slices.Equal(got, want) {
			t.Errorf("kubectl get clustergateways %s: %q, want %q", selector, got, want)
		}
	}
	refused := k.try(ctx, t, "", "get", "clustergateways", "--field-selector=spec.provider=x")
	if refused.code == 0 || !strings.Contains(refused.stderr, "spec.provider") {
		t.Error(refused)
	}
}

// annotate changes the Secret of a cluster, and returns its new resource version.
func annotate(ctx context.Context, t *testing.T, name, value string) string {
	t.Helper()
	patch := fmt.Appendf(nil, `{"metadata":{"annotations":{"e2e":%q}}}`, value)
	secret, err := shared.embeddedHub.Client().CoreV1().Secrets(namespaceOfSecrets).Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return secret.ResourceVersion
}

func placeholder(name string) lab.SecretOptions {
	return lab.SecretOptions{Name: name, Data: map[string][]byte{
		"endpoint": []byte("https://127.0.0.1:1"), "ca.crt": shared.direct.CAPEM(), "token": []byte("not used"),
	}}
}

func testGatewayWatch(ctx context.Context, t *testing.T, k *kubectl, door lab.Via) {
	name := "watched-" + string(door)
	watch := k.start(ctx, t, "get", "clustergateways", "-w", "--output-watch-events", "-o", `jsonpath={.type} {.object.metadata.name} {.object.metadata.annotations.e2e}{"\n"}`)
	watch.sees(t, "ADDED direct", nil)
	register(ctx, t, shared.embeddedHub, placeholder(name))
	watch.sees(t, "ADDED "+name, nil)
	annotate(ctx, t, name, "changed")
	watch.sees(t, "MODIFIED "+name+" changed\n", nil)
	if err := shared.embeddedHub.DeleteSecret(ctx, name); err != nil {
		t.Fatal(err)
	}
	watch.sees(t, "DELETED "+name+" changed\n", nil)
}

// testGatewayInformer compares the events of an informer with the changes that were made, one by
// one.
func testGatewayInformer(ctx context.Context, t *testing.T, _ *kubectl, door lab.Via) {
	const changes = 50
	name := "informed-" + string(door)
	client, err := dynamic.NewForConfig(shared.embedded.RESTConfig(door))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(ctx)
	events := make(chan string, 10*changes)
	report := func(kind string, obj any) {
		if o, ok := obj.(*unstructured.Unstructured); ok && o.GetName() == name {
			events <- kind + " " + o.GetResourceVersion()
		}
	}
	resource := v1alpha1.SchemeGroupVersion.WithResource("clustergateways")
	factory := dynamicinformer.NewDynamicSharedInformerFactory(client, 0)
	informer := factory.ForResource(resource).Informer()
	if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { report("add", o) },
		UpdateFunc: func(_, o any) { report("update", o) },
		DeleteFunc: func(o any) { report("delete", o) },
	}); err != nil {
		t.Fatal(err)
	}
	factory.Start(ctx.Done())
	defer factory.Shutdown()
	defer cancel()
	if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
		t.Fatal("the informer does not sync")
	}
	if len(informer.GetStore().ListKeys()) < 2 {
		t.Errorf("the informer has synced with %q", informer.GetStore().ListKeys())
	}

	// The watch of the Secrets reports all changes. The gateway writes to the Secrets, too, when it
	// has probed a cluster.
	secrets := shared.embeddedHub.Client().CoreV1().Secrets(namespaceOfSecrets)
	before, err := secrets.List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	truth, err := secrets.Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name, ResourceVersion: before.ResourceVersion})
	if err != nil {
		t.Fatal(err)
	}
	defer truth.Stop()
	register(ctx, t, shared.embeddedHub, placeholder(name))
	for i := range changes {
		annotate(ctx, t, name, fmt.Sprint(i))
	}
	if err := secrets.Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	kinds := map[watch.EventType]string{watch.Added: "add", watch.Modified: "update", watch.Deleted: "delete"}
	var want, got []string
	for len(want) == 0 || !strings.HasPrefix(want[len(want)-1], "delete ") {
		event, ok := <-truth.ResultChan()
		secret, isSecret := event.Object.(*corev1.Secret)
		if !ok || !isSecret {
			t.Fatalf("the watch of the Secret ended after %q: %v", want, event)
		}
		want = append(want, kinds[event.Type]+" "+secret.ResourceVersion)
	}
	for len(got) == 0 || !strings.HasPrefix(got[len(got)-1], "delete ") {
		select {
		case event := <-events:
			got = append(got, event)
		case <-ctx.Done():
			t.Fatalf("the informer received %q, want %q", got, want)
		}
	}
	if len(want) < changes+2 || !slices.Equal(got, want) {
		t.Errorf("the informer received %q, want %q", got, want)
	}
}

func testGatewayWrites(ctx context.Context, t *testing.T, k *kubectl, _ lab.Via) {
	const object = "apiVersion: cluster.core.oam.dev/v1alpha1\nkind: ClusterGateway\nmetadata: {name: refused}\n"
	const message = "clustergateways.cluster.core.oam.dev is read-only: to register, change or remove a cluster, create, change or delete the Secret with its name in the namespace " + namespaceOfSecrets
	for _, attempt := range []struct {
		stdin string
		args  []string
	}{
		{object, []string{"create", "-f", "-"}},
		{object, []string{"apply", "--server-side", "-f", "-"}},
		{"", []string{"delete", "clustergateway", "direct"}},
		{"", []string{"patch", "clustergateway", "direct", "--type=merge", "-p", "{}"}},
		{"", []string{"annotate", "clustergateway", "direct", "a=b"}},
	} {
		r := k.try(ctx, t, attempt.stdin, attempt.args...)
		if r.code == 0 || !strings.Contains(r.stderr, "MethodNotAllowed") || !strings.Contains(r.stderr, message) {
			t.Error(r)
		}
	}
	k.run(ctx, t, "get", "clustergateway", "direct")
}

func testGatewayExplain(ctx context.Context, t *testing.T, k *kubectl, _ lab.Via) {
	mustContain(t, k.run(ctx, t, "explain", "clustergateways"), "GROUP:", "cluster.core.oam.dev", "KIND:", "ClusterGateway", "spec", "status")
	mustContain(t, k.run(ctx, t, "explain", "clustergateways.spec.access.endpoint", "--recursive"), "caBundle", "address", "insecure")
}

func testGatewayAPIResources(ctx context.Context, t *testing.T, k *kubectl, _ lab.Via) {
	out := k.run(ctx, t, "api-resources", "--api-group=cluster.core.oam.dev", "--no-headers", "-o", "wide")
	fields := strings.Fields(out)
	if len(fields) < 6 || !slices.Equal(fields[:5], []string{"clustergateways", "cg,cgw", "cluster.core.oam.dev/v1alpha1", "false", "ClusterGateway"}) {
		t.Errorf("kubectl api-resources printed:\n%s", out)
	}
	mustContain(t, out, "get,list,watch")
}

// testGatewayHealth probes a cluster by GET, and overrides the stored health by PUT.
func testGatewayHealth(ctx context.Context, t *testing.T, k *kubectl, door lab.Via) {
	name := "health-" + string(door)
	path := gatewayPath + "/" + name + "/health"
	register(ctx, t, shared.embeddedHub, lab.SecretOptions{Name: name, Data: map[string][]byte{
		"endpoint": []byte(shared.direct.Endpoint()), "ca.crt": shared.direct.CAPEM(), "token": token(t, shared.direct, "cluster-gateway"),
	}})
	// The first probe of the gateway is written to the Secret.
	labtest.Within(t, labtest.Timeout, "the first probe", func() error {
		if g := parseGateway(t, k.run(ctx, t, "get", "clustergateway", name, "-o", "json")); g.Status.Version == "" {
			return fmt.Errorf("the status is %+v", g.Status)
		}
		return nil
	})

	probed := parseGateway(t, k.run(ctx, t, "get", "--raw", path))
	if s := probed.Status; !s.Healthy || s.Version != "v1.37.2" || s.Latency == nil || s.LastProbeTime == nil {
		t.Errorf("the probe found %+v", s)
	}

	override := probed.DeepCopy()
	override.Status.Healthy, override.Status.HealthyReason = false, "UnderRepair"
	body, err := json.Marshal(override)
	if err != nil {
		t.Fatal(err)
	}
	answered := parseGateway(t, k.runWith(ctx, t, string(body), "replace", "--raw", path, "-f", "-"))
	stored := parseGateway(t, k.run(ctx, t, "get", "clustergateway", name, "-o", "json"))
	for _, g := range []*v1alpha1.ClusterGateway{answered, stored} {
		if g.Status.Healthy || g.Status.HealthyReason != "UnderRepair" {
			t.Errorf("after the override the status is %+v", g.Status)
		}
	}
	// The change is based on an outdated version of the Secret.
	if stale := k.try(ctx, t, string(body), "replace", "--raw", path, "-f", "-"); stale.code == 0 || !strings.Contains(stale.stderr, "Conflict") {
		t.Error(stale)
	}

	// An unreachable cluster is a result of the probe, not an error.
	gone := placeholder(name)
	if err := shared.embeddedHub.ApplySecret(ctx, gone); err != nil {
		t.Fatal(err)
	}
	labtest.Within(t, labtest.Timeout, "the probe to fail", func() error {
		g := parseGateway(t, k.run(ctx, t, "get", "--raw", path))
		if g.Status.Healthy {
			return fmt.Errorf("it is healthy: %+v", g.Status)
		}
		return nil
	})
	if r := ask(ctx, t, shared.embedded.RESTConfig(door), http.MethodGet, gatewayPath+"/missing/health"); r.code != http.StatusNotFound {
		t.Errorf("the health of an unreachable cluster: %+v", r)
	}
}

func parseGateway(t *testing.T, text string) *v1alpha1.ClusterGateway {
	t.Helper()
	g := &v1alpha1.ClusterGateway{}
	if err := json.Unmarshal([]byte(text), g); err != nil || g.Kind != v1alpha1.KindName {
		t.Fatalf("not a ClusterGateway (%v): %s", err, text)
	}
	return g
}
