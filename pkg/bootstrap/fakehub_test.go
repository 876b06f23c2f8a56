// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// testNow is the clock of the commands in these tests.
var testNow = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

const gatewayPath = "/apis/cluster.core.oam.dev/v1alpha1"

// fakeHub is a hub with a gateway, over TLS: it answers each request from a table.
type fakeHub struct {
	kubeconfig string
	// now is the time of the hub and of the commands.
	now time.Time
	// check is called with each request. Nil means that it is not called.
	check func(*http.Request)
	// program is the name of the commands.
	program string

	mu sync.Mutex
	// answers has what is answered, by method and path: an object, a *metav1.Status, or a func(path
	// string) any that returns one of these. Anything else is not found.
	answers map[string]any
}

// newFakeHub starts a hub on which no cluster is registered, and every right is granted.
func newFakeHub(t *testing.T) *fakeHub {
	t.Helper()
	h := &fakeHub{now: testNow, answers: map[string]any{
		"GET /version":       map[string]any{"gitVersion": "v1.37.2"},
		"GET " + gatewayPath: &metav1.APIResourceList{TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: "cluster.core.oam.dev/v1alpha1"},
		"POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews": review(map[string]any{"allowed": true}),
		"POST /apis/authentication.k8s.io/v1/selfsubjectreviews":      review(map[string]any{"userInfo": map[string]any{"username": "jane"}}),
		"GET " + gatewayPath + "/clustergateways":                     clusterList(),
		"GET /api/v1/namespaces/cluster-gateway-system/secrets":       &corev1.SecretList{TypeMeta: metav1.TypeMeta{Kind: "SecretList", APIVersion: "v1"}},
	}}
	server := httptest.NewTLSServer(h)
	t.Cleanup(server.Close)
	config := clientcmdapi.NewConfig()
	config.Clusters["hub"] = &clientcmdapi.Cluster{
		Server: server.URL, CertificateAuthorityData: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}),
	}
	config.AuthInfos["jane"] = &clientcmdapi.AuthInfo{Token: "jane's"}
	config.Contexts["hub"] = &clientcmdapi.Context{Cluster: "hub", AuthInfo: "jane"}
	config.CurrentContext = "hub"
	h.kubeconfig = filepath.Join(t.TempDir(), "hub.kubeconfig")
	if err := clientcmd.WriteToFile(*config, h.kubeconfig); err != nil {
		t.Fatal(err)
	}
	return h
}

// review answers a review with its status. What is asked does not matter: clients ask in protobuf.
func review(status map[string]any) func(path string) any {
	kinds := map[string]string{
		"selfsubjectaccessreviews": "SelfSubjectAccessReview", "selfsubjectrulesreviews": "SelfSubjectRulesReview", "selfsubjectreviews": "SelfSubjectReview",
	}
	return func(path string) any {
		version, resource := filepath.Split(path)
		_, version, _ = strings.Cut(version, "apis/")
		if _, inCluster, found := strings.Cut(version, "apis/"); found {
			version = inCluster
		}
		return map[string]any{"kind": kinds[resource], "apiVersion": strings.TrimSuffix(version, "/"), "status": status}
	}
}

// forbidden is how an API server refuses a verb on the clustergateways.
func forbidden(text string) *metav1.Status {
	return &metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Code: http.StatusForbidden, Reason: metav1.StatusReasonForbidden, Message: text}
}

// failure is how the gateway reports a request that ended at a stage.
func failure(code int32, cause metav1.CauseType, text string) *metav1.Status {
	return &metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Code: code, Reason: v1alpha1.StatusReasonBadGateway, Message: text,
		Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: cause, Message: text}}},
	}
}

// answer sets what is answered to a method and a path.
func (h *fakeHub) answer(request string, with any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.answers[request] = with
}

// add registers a cluster that answers, and returns it for changes.
func (h *fakeHub) add(c *v1alpha1.ClusterGateway) {
	h.answer("GET "+gatewayPath+"/clustergateways/"+c.Name, c)
	h.answer("GET "+v1alpha1.ProxyPath(c.Name)+"/version", map[string]any{"gitVersion": "v1.36.1"})
	for _, resource := range []string{"authorization.k8s.io/v1/selfsubjectaccessreviews", "authentication.k8s.io/v1/selfsubjectreviews"} {
		status := map[string]any{"allowed": true}
		if resource == "authentication.k8s.io/v1/selfsubjectreviews" {
			status = map[string]any{"userInfo": map[string]any{"username": "gateway"}}
		}
		h.answer("POST "+v1alpha1.ProxyPath(c.Name)+"/apis/"+resource, review(status))
	}
}

func clusterList(items ...v1alpha1.ClusterGateway) *v1alpha1.ClusterGatewayList {
	return &v1alpha1.ClusterGatewayList{TypeMeta: metav1.TypeMeta{Kind: "ClusterGatewayList", APIVersion: "cluster.core.oam.dev/v1alpha1"}, Items: items}
}

// testCluster is a ClusterGateway with a route and conditions.
func testCluster(name, route string, conditions ...metav1.Condition) *v1alpha1.ClusterGateway {
	c := &v1alpha1.ClusterGateway{
		TypeMeta:   metav1.TypeMeta{Kind: "ClusterGateway", APIVersion: "cluster.core.oam.dev/v1alpha1"},
		ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.NewTime(testNow.Add(-48 * time.Hour)), Annotations: map[string]string{v1alpha1.AnnotationAccess: "admin"}},
	}
	c.Status.Route, c.Status.Version, c.Status.Conditions = route, "v1.36.1", conditions
	return c
}

func readyCondition(status metav1.ConditionStatus, reason, message string) metav1.Condition {
	return metav1.Condition{Type: v1alpha1.ConditionReady, Status: status, Reason: reason, Message: message}
}

// ServeHTTP implements http.Handler.
func (h *fakeHub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	if h.check != nil {
		h.check(r)
	}
	answer, found := h.answers[r.Method+" "+r.URL.Path]
	h.mu.Unlock()
	if f, ok := answer.(func(string) any); ok {
		answer = f(r.URL.Path)
	}
	if !found {
		status := apierrors.NewNotFound(v1alpha1.SchemeGroupVersion.WithResource(v1alpha1.ResourceName).GroupResource(), filepath.Base(r.URL.Path)).Status()
		status.TypeMeta = metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}
		answer = &status
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Date", h.now.UTC().Format(http.TimeFormat))
	if status, ok := answer.(*metav1.Status); ok {
		w.WriteHeader(int(status.Code))
	}
	_ = json.NewEncoder(w).Encode(answer) // a client that has gone needs no answer
}

// run runs agent-bootstrap with the hub's kubeconfig.
func (h *fakeHub) run(t *testing.T, args ...string) (out, errOut string, err error) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := NewCommand(Config{Program: h.program, Out: &stdout, ErrOut: &stderr, Now: func() time.Time { return h.now }})
	cmd.SetArgs(append([]string{"--kubeconfig", h.kubeconfig}, args...))
	err = cmd.ExecuteContext(t.Context())
	return stdout.String(), stderr.String(), err
}
