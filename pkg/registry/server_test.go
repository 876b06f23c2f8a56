// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/endpoints/filters"
	openapinamer "k8s.io/apiserver/pkg/endpoints/openapi"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/kubernetes/fake"
	restclient "k8s.io/client-go/rest"
	clienttesting "k8s.io/client-go/testing"
	basecompatibility "k8s.io/component-base/compatibility"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/apis/openapi"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
)

// newServer returns a generic API server without authentication that uses the storages of this
// package and a fake clientset as hub.
func newServer(t *testing.T, hub *fake.Clientset, probe ProbeFunc) *httptest.Server {
	t.Helper()
	scheme, err := NewScheme()
	if err != nil {
		t.Fatal(err)
	}
	codecs := serializer.NewCodecFactory(scheme)
	config := genericapiserver.NewConfig(codecs)
	config.ExternalAddress = "127.0.0.1:443"
	config.PublicAddress = net.IPv4(127, 0, 0, 1)
	config.LoopbackClientConfig = &restclient.Config{}
	config.EffectiveVersion = basecompatibility.NewEffectiveVersionFromString("1.37", "", "")
	namer := openapinamer.NewDefinitionNamer(scheme)
	config.OpenAPIConfig = genericapiserver.DefaultOpenAPIConfig(openapi.GetOpenAPIDefinitions, namer)
	config.OpenAPIV3Config = genericapiserver.DefaultOpenAPIV3Config(openapi.GetOpenAPIDefinitions, namer)
	config.BuildHandlerChainFunc = func(api http.Handler, c *genericapiserver.Config) http.Handler {
		handler := WithWriteRefusal(api, codecs, testNamespace)
		handler = filters.WithRequestInfo(handler, c.RequestInfoResolver)
		return filters.WithRequestReceivedTimestamp(filters.WithAuditInit(handler))
	}
	server, err := config.Complete(nil).New("registry-test", genericapiserver.NewEmptyDelegate())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Destroy)

	secrets := hub.CoreV1().Secrets(testNamespace)
	group := genericapiserver.NewDefaultAPIGroupInfo(v1alpha1.GroupName, scheme, runtime.NewParameterCodec(scheme), codecs)
	group.VersionedResourcesStorageMap[v1alpha1.Version] = map[string]rest.Storage{
		"clustergateways":        NewREST(secrets, cluster.ParseOptions{}),
		"clustergateways/health": NewHealthREST(secrets, cluster.ParseOptions{}, probe),
		"clustergateways/proxy":  NewProxyREST(http.HandlerFunc(echoProxy)),
	}
	if err := server.InstallAPIGroup(&group); err != nil {
		t.Fatal(err)
	}
	server.PrepareRun()
	front := httptest.NewServer(server.Handler)
	t.Cleanup(front.Close)
	return front
}

func echoProxy(w http.ResponseWriter, req *http.Request) {
	info, _ := request.RequestInfoFrom(req.Context())
	w.Header().Set("X-Cluster", info.Name)
	_, _ = io.WriteString(w, req.Method+" "+req.URL.Path)
}

const apiRoot = "/apis/cluster.core.oam.dev/v1alpha1"

// call returns the status code and the body of the response.
func call(t *testing.T, server *httptest.Server, method, path, accept, body string) (int, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, server.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	if body != "" {
		contentType := "application/json"
		if method == http.MethodPatch {
			contentType = "application/merge-patch+json"
		}
		req.Header.Set("Content-Type", contentType)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, answer
}

func decode[T any](t *testing.T, data []byte) T {
	t.Helper()
	var v T
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatalf("%v in %s", err, data)
	}
	return v
}

const tableAccept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"

func TestServerDiscovery(t *testing.T) {
	server := newServer(t, fake.NewClientset(), nil)
	code, body := call(t, server, http.MethodGet, apiRoot, "", "")
	if code != http.StatusOK {
		t.Fatalf("code %d: %s", code, body)
	}
	got := map[string][]string{}
	kinds := map[string]string{}
	for _, r := range decode[metav1.APIResourceList](t, body).APIResources {
		got[r.Name], kinds[r.Name] = r.Verbs, r.Kind
		if r.Namespaced {
			t.Errorf("%s is namespaced", r.Name)
		}
		if r.Name == "clustergateways" && (r.SingularName != "clustergateway" || !slices.Equal(r.ShortNames, []string{"cg", "cgw"})) {
			t.Errorf("names are %q and %q", r.SingularName, r.ShortNames)
		}
	}
	want := map[string][]string{
		"clustergateways":        {"get", "list", "watch"},
		"clustergateways/health": {"get", "patch", "update"},
		"clustergateways/proxy":  {"create", "delete", "get", "patch", "update"},
	}
	for name, verbs := range want {
		slices.Sort(got[name])
		if !slices.Equal(got[name], verbs) {
			t.Errorf("%s has the verbs %v, not %v", name, got[name], verbs)
		}
	}
	if len(got) != len(want) {
		t.Errorf("resources: %v", got)
	}
	if kinds["clustergateways/proxy"] != "ClusterGatewayProxyOptions" || kinds["clustergateways/health"] != "ClusterGateway" {
		t.Errorf("kinds: %v", kinds)
	}
}

func TestServerOpenAPI(t *testing.T) {
	server := newServer(t, fake.NewClientset(), nil)
	for _, path := range []string{"/openapi/v2", "/openapi/v3" + apiRoot} {
		code, body := call(t, server, http.MethodGet, path, "application/json", "")
		if code != http.StatusOK {
			t.Fatalf("%s: code %d: %s", path, code, body)
		}
		for _, want := range []string{
			`dev.oam.core.cluster.v1alpha1.ClusterGateway"`,
			`dev.oam.core.cluster.v1alpha1.ClusterGatewayStatus"`,
			`io.k8s.apimachinery.pkg.apis.meta.v1.Condition"`,
			`clustergateways/{name}/proxy/{path}`,
			`clustergateways/{name}/health`,
			`credentialExpirationTime`,
			`proxy-url`,
			`x-kubernetes-group-version-kind`,
		} {
			if !strings.Contains(string(body), want) {
				t.Errorf("%s lacks %s", path, want)
			}
		}
	}
}

func TestServerGetListTable(t *testing.T) {
	pki := newPKI(t)
	good, broken := pki.x509Secret("good"), pki.x509Secret("broken")
	broken.Data["endpoint"] = []byte("http://10.0.0.1")
	server := newServer(t, fake.NewClientset(good, broken), nil)

	code, body := call(t, server, http.MethodGet, apiRoot+"/clustergateways/good", "", "")
	gateway := decode[v1alpha1.ClusterGateway](t, body)
	if code != http.StatusOK || gateway.Name != "good" || gateway.Kind != "ClusterGateway" || gateway.APIVersion != "cluster.core.oam.dev/v1alpha1" {
		t.Errorf("code %d: %s", code, body)
	}
	if gateway.Spec.Access.Endpoint.Const.Address != "https://10.0.0.1:6443" {
		t.Errorf("endpoint: %s", body)
	}

	code, body = call(t, server, http.MethodGet, apiRoot+"/clustergateways", "", "")
	list := decode[v1alpha1.ClusterGatewayList](t, body)
	if code != http.StatusOK || list.Kind != "ClusterGatewayList" || len(list.Items) != 2 {
		t.Errorf("code %d: %s", code, body)
	}

	code, body = call(t, server, http.MethodGet, apiRoot+"/clustergateways", tableAccept, "")
	table := decode[metav1.Table](t, body)
	if code != http.StatusOK || table.Kind != "Table" || len(table.Rows) != 2 {
		t.Fatalf("code %d: %s", code, body)
	}
	for _, row := range table.Rows {
		want := map[any]string{"good": "Unknown", "broken": "False"}[row.Cells[0]]
		if row.Cells[2] != want {
			t.Errorf("row %v", row.Cells)
		}
	}

	code, body = call(t, server, http.MethodGet, apiRoot+"/clustergateways/absent", "", "")
	status := decode[metav1.Status](t, body)
	if code != http.StatusNotFound || status.Message != `clustergateways.cluster.core.oam.dev "absent" not found` || status.Details.Kind != "clustergateways" {
		t.Errorf("code %d: %s", code, body)
	}

	for _, field := range []string{"spec.provider=x", "metadata.namespace=x", "status.route=direct"} {
		code, body = call(t, server, http.MethodGet, apiRoot+"/clustergateways?fieldSelector="+field, "", "")
		if code != http.StatusBadRequest {
			t.Errorf("%s: code %d: %s", field, code, body)
		}
	}
}

func TestServerRefusesWrites(t *testing.T) {
	server := newServer(t, fake.NewClientset(newPKI(t).x509Secret("a")), nil)
	object := `{"apiVersion":"cluster.core.oam.dev/v1alpha1","kind":"ClusterGateway","metadata":{"name":"a"}}`
	for _, test := range []struct{ method, path, body string }{
		{http.MethodPost, "/clustergateways", object},
		{http.MethodPut, "/clustergateways/a", object},
		{http.MethodPatch, "/clustergateways/a", object},
		{http.MethodDelete, "/clustergateways/a", ""},
		{http.MethodDelete, "/clustergateways", ""},
	} {
		code, body := call(t, server, test.method, apiRoot+test.path, "", test.body)
		status := decode[metav1.Status](t, body)
		if code != http.StatusMethodNotAllowed || status.Reason != metav1.StatusReasonMethodNotAllowed ||
			!strings.Contains(status.Message, "the Secret with its name in the namespace "+testNamespace) {
			t.Errorf("%s %s: code %d: %s", test.method, test.path, code, body)
		}
	}
}

func TestServerProxyTakesEveryMethod(t *testing.T) {
	server := newServer(t, fake.NewClientset(), nil)
	for _, method := range (&ProxyREST{}).ConnectMethods() {
		for _, path := range []string{"", "/", "/api/v1/namespaces?path=x&watch=true"} {
			code, body := call(t, server, method, apiRoot+"/clustergateways/a/proxy"+path, "", "")
			plain, _, _ := strings.Cut(path, "?")
			want := method + " " + apiRoot + "/clustergateways/a/proxy" + plain
			if method == http.MethodHead {
				want = ""
			}
			if code != http.StatusOK || string(body) != want {
				t.Errorf("%s %q: code %d: %s", method, path, code, body)
			}
		}
	}
}

func TestServerHealth(t *testing.T) {
	secret := newPKI(t).x509Secret("a")
	probed := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	hub := fake.NewClientset(secret)
	server := newServer(t, hub, func(_ context.Context, name string) (ProbeResult, error) {
		return ProbeResult{Healthy: true, Version: "v1.37.2-" + name, Latency: 12 * time.Millisecond, Time: probed}, nil
	})
	path := apiRoot + "/clustergateways/a/health"

	code, body := call(t, server, http.MethodGet, path, "", "")
	got := decode[v1alpha1.ClusterGateway](t, body)
	if code != http.StatusOK || !got.Status.Healthy || got.Status.Version != "v1.37.2-a" || got.Status.Conditions[0].Status != metav1.ConditionTrue {
		t.Errorf("code %d: %s", code, body)
	}
	if code, body = call(t, server, http.MethodGet, path, tableAccept, ""); code != http.StatusOK || decode[metav1.Table](t, body).Kind != "Table" {
		t.Errorf("code %d: %s", code, body)
	}

	put := `{"apiVersion":"cluster.core.oam.dev/v1alpha1","kind":"ClusterGateway","metadata":{"name":"a"},"status":{"healthy":true,"healthyReason":"Override"}}`
	code, body = call(t, server, http.MethodPut, path, "", put)
	got = decode[v1alpha1.ClusterGateway](t, body)
	if code != http.StatusOK || !got.Status.Healthy || got.Status.HealthyReason != "Override" {
		t.Errorf("code %d: %s", code, body)
	}

	code, body = call(t, server, http.MethodPatch, path, "", `{"status":{"healthy":false,"healthyReason":"Maintenance"}}`)
	got = decode[v1alpha1.ClusterGateway](t, body)
	if code != http.StatusOK || got.Status.Healthy || got.Status.HealthyReason != "Maintenance" {
		t.Errorf("code %d: %s", code, body)
	}
	stored, err := hub.CoreV1().Secrets(testNamespace).Get(t.Context(), "a", metav1.GetOptions{})
	if err != nil || stored.Annotations[v1alpha1.AnnotationHealthy] != "false" || stored.Annotations[v1alpha1.AnnotationHealthyReason] != "Maintenance" {
		t.Errorf("stored %v, %v", stored.Annotations, err)
	}
}

// The end of the initial events must be marked in both output formats, or informers never sync.
func TestServerWatch(t *testing.T) {
	hub := fake.NewClientset()
	source := watch.NewFakeWithChanSize(3, false)
	hub.PrependWatchReactor("secrets", func(clienttesting.Action) (bool, watch.Interface, error) { return true, source, nil })
	server := newServer(t, hub, nil)
	secret := newPKI(t).x509Secret("a")
	secret.ResourceVersion = "7"
	source.Add(secret)
	source.Action(watch.Bookmark, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{
		ResourceVersion: "9", Annotations: map[string]string{metav1.InitialEventsAnnotationKey: "true"},
	}})
	source.Stop()

	query := "?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
	code, body := call(t, server, http.MethodGet, apiRoot+"/clustergateways"+query, "", "")
	if code != http.StatusOK {
		t.Fatalf("code %d: %s", code, body)
	}
	type event struct {
		Type   string
		Object v1alpha1.ClusterGateway
	}
	decoder := json.NewDecoder(strings.NewReader(string(body)))
	var added, bookmark event
	if err := decoder.Decode(&added); err != nil {
		t.Fatal(err)
	}
	if err := decoder.Decode(&bookmark); err != nil {
		t.Fatal(err)
	}
	if added.Type != "ADDED" || added.Object.Name != "a" || added.Object.ResourceVersion != "7" {
		t.Errorf("first event: %+v", added)
	}
	if bookmark.Type != "BOOKMARK" || bookmark.Object.Kind != "ClusterGateway" || bookmark.Object.ResourceVersion != "9" ||
		bookmark.Object.Annotations[metav1.InitialEventsAnnotationKey] != "true" || len(bookmark.Object.Status.Conditions) != 0 {
		t.Errorf("second event: %+v", bookmark)
	}
}
