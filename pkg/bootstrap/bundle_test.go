// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"archive/tar"
	"compress/gzip"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// canaries are secrets, by where they are.
type canaries map[string]string

// new returns a secret that nothing else contains.
func (c canaries) new(place string) string {
	c[place] = "c4nary-" + rand.Text()
	return c[place]
}

// newKey returns a private key in PEM. Its lines are canaries.
func (c canaries) newKey(t *testing.T, place string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	for i, line := range strings.Split(strings.TrimSpace(text), "\n") {
		if !strings.HasPrefix(line, "-----") {
			c[fmt.Sprintf("%s, line %d", place, i)] = line
		}
	}
	return text
}

// newJWT returns a token in the form of a ServiceAccount's.
func (c canaries) newJWT(place string) string {
	part := base64.RawURLEncoding.EncodeToString
	token := part([]byte(`{"alg":"RS256"}`)) + "." + part([]byte(`{"sub":"`+rand.Text()+`"}`)) + "." + part([]byte(rand.Text()))
	c[place] = token
	return token
}

// find returns where canaries are in a text: as they are, or in base64 or the encoding of URLs.
func (c canaries) find(text string) (places []string) {
	texts := []string{text}
	for _, run := range regexp.MustCompile(`[A-Za-z0-9+/_-]{16,}`).FindAllString(text, -1) {
		run = strings.NewReplacer("-", "+", "_", "/").Replace(run)
		for shift := range 4 {
			if decoded, err := base64.RawStdEncoding.DecodeString(run[shift : shift+(len(run)-shift)/4*4]); err == nil {
				texts = append(texts, string(decoded))
			}
		}
	}
	for i := range texts {
		if decoded, err := url.QueryUnescape(texts[i]); err == nil {
			texts = append(texts, decoded)
		}
	}
	for place, secret := range c {
		for _, form := range []string{secret, url.QueryEscape(secret), url.PathEscape(secret)} {
			if slices.ContainsFunc(texts, func(s string) bool { return strings.Contains(s, form) }) {
				places = append(places, place)
				break
			}
		}
	}
	slices.Sort(places)
	return places
}

// readBundle returns the files of a bundle.
func readBundle(t *testing.T, path string) map[string]string {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	compressed, err := gzip.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for archive := tar.NewReader(compressed); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		_, name, _ := strings.Cut(header.Name, "/")
		files[name] = string(text)
	}
}

// TestSupportBundleHasNoSecrets puts a secret wherever there can be one, and searches the bundle
// for each of them.
func TestSupportBundleHasNoSecrets(t *testing.T) {
	t.Parallel()
	h, c := newFakeHub(t), canaries{}
	h.withOwnToken(t, c.new("the caller's token"))
	known := h.secretsWith(t, c)
	h.gatewayWith(t, c, known)
	h.clusterWith(c)
	path := filepath.Join(t.TempDir(), "bundle.tar.gz")
	_, errOut, err := h.run(t, "support-bundle", "--out", path)
	if ExitCode(err) != 1 || !strings.Contains(errOut, "\nMissing:\n  hub/leases.yaml: ") {
		t.Fatalf("exit code %d: %v\n%s", ExitCode(err), err, errOut)
	}
	files := readBundle(t, path)
	files["what the terminal shows"] = errOut
	for name, text := range files {
		if places := c.find(text); len(places) > 0 {
			t.Errorf("%s has secrets: %s\n%s", name, strings.Join(places, ", "), text)
		}
	}
	for name, wants := range map[string][]string{
		"index.yaml":                         {"hub/secrets.yaml", "what: hub/leases.yaml"},
		"hub/secrets.yaml":                   {"name: edge-1", "- tls.key", "- empty", "type: Opaque", "env: prod", "cluster.core.oam.dev/access: admin", "name: invitation.edge-9"},
		"hub/clustergateways.yaml":           {"address: https://" + redacted + "@edge-1.example.com:6443", "reason: NoAgent"},
		"hub/deployments.yaml":               {"--tunnel-server-count=2", "key: webhook", "name: webhook-secret", "value: 512MiB"},
		"hub/configmaps.yaml":                {"server: https://webhook.example.com", "unused: (not collected)", "address: tunnel.example.com:8132"},
		"hub/events-clusters.yaml":           {"reason: AgentConnected"},
		"hub/events-gateway.yaml":            nil,
		"doctor.yaml":                        {"cluster: edge-1", "stage: dial"},
		"gateways/127.0.0.1/metrics.txt":     {`cluster_gateway_ready{cluster="edge-1"} 1`},
		"gateways/127.0.0.1/version.json":    {"v0.1.0"},
		"gateways/127.0.0.1/tunnels.json":    {`"cluster": "edge-1"`, "lastError"},
		"logs/gateway-0/cluster-gateway.log": {"Started serving"},
		"clusters/edge-1/agent.yaml":         {"kind: Deployment", "kind: Pod", "readyReplicas: 1"},
	} {
		text, found := files[name]
		for _, want := range wants {
			if !found || !strings.Contains(text, want) {
				t.Errorf("%s has no %q:\n%s", name, want, text)
			}
		}
	}
	// The file is the caller's alone, and is not overwritten.
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if _, _, err := h.run(t, "support-bundle", "--out", path); ExitCode(err) != 2 || err.Error() != path+" exists: choose another file with --out" {
		t.Errorf("exit code %d: %v", ExitCode(err), err)
	}
}

// withOwnToken gives the caller a token.
func (h *fakeHub) withOwnToken(t *testing.T, token string) {
	t.Helper()
	config, err := clientcmd.LoadFromFile(h.kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	config.AuthInfos["jane"].Token = token
	if err := clientcmd.WriteToFile(*config, h.kubeconfig); err != nil {
		t.Fatal(err)
	}
}

// secretsWith adds Secrets with canaries. It returns their values as they may appear elsewhere.
func (h *fakeHub) secretsWith(t *testing.T, c canaries) (known []string) {
	t.Helper()
	token, maintenance, key := c.newJWT("token"), c.new("maintenance-token"), c.newKey(t, "tls.key")
	exec := fmt.Sprintf(`{"apiVersion":"client.authentication.k8s.io/v1","command":"plugin","args":["--pw",%q],"env":[{"name":"A","value":%q}]}`, c.new("exec args"), c.new("exec env"))
	kubeconfig := fmt.Sprintf("apiVersion: v1\nkind: Config\nusers:\n- name: a\n  user: {token: %s, password: %s, client-key-data: %s}\n",
		c.new("kubeconfig token"), c.new("kubeconfig password"), base64.StdEncoding.EncodeToString([]byte(c.newKey(t, "kubeconfig key"))))
	data := map[string][]byte{
		"token": []byte(token), "maintenance-token": []byte(maintenance), "tls.key": []byte(key), "exec": []byte(exec), "value": []byte(kubeconfig), "empty": {},
		"endpoint": []byte("https://edge-1.example.com:6443"), "proxy-url": []byte("socks5://jane:" + c.new("proxy-url") + "@proxy:1080"),
	}
	applied := fmt.Sprintf(`{"kind":"Secret","stringData":{"token":%q},"data":{"x":%q}}`, c.new("last-applied stringData"), base64.StdEncoding.EncodeToString([]byte(c.new("last-applied data"))))
	object := func(name string, labels map[string]string, data map[string][]byte) map[string]any {
		return map[string]any{
			"metadata": map[string]any{"name": name, "namespace": "cluster-gateway-system", "labels": labels, "annotations": map[string]string{
				"kubectl.kubernetes.io/last-applied-configuration": applied, "cluster.core.oam.dev/access": "admin", "example.com/note": c.new("annotation"),
			}},
			"type": "Opaque", "data": data, "stringData": map[string]string{"a": c.new("stringData of " + name)},
		}
	}
	h.answer("GET /api/v1/namespaces/cluster-gateway-system/secrets", map[string]any{"kind": "SecretList", "apiVersion": "v1", "items": []any{
		object("edge-1", map[string]string{v1alpha1.LabelCredentialType: "ServiceAccountToken", "env": "prod"}, data),
		object("invitation.edge-9", map[string]string{v1alpha1.LabelInvitation: "edge-9"}, map[string][]byte{"access": []byte("cluster-admin")}),
		object("cluster-gateway-tunnel-ca", map[string]string{"app.kubernetes.io/managed-by": "cluster-gateway"}, map[string][]byte{"tls.key": []byte(c.newKey(t, "tunnel CA"))}),
		object("another", nil, map[string][]byte{"password": []byte(c.new("another Secret"))}),
	}})
	return []string{token, maintenance, key, c["exec args"], c["exec env"], c["kubeconfig token"], c["proxy-url"], c["another Secret"], c["the caller's token"]}
}

// gatewayWith adds the gateway. Its log, its metrics and the Events repeat the values in known, in
// every encoding, and have secrets of their own.
func (h *fakeHub) gatewayWith(t *testing.T, c canaries, known []string) {
	t.Helper()
	var repeated strings.Builder
	for _, s := range known {
		fmt.Fprintf(&repeated, "%s %q %s %s %s\n", s, s, base64.StdEncoding.EncodeToString([]byte(s)), base64.URLEncoding.EncodeToString([]byte("ab"+s)), url.QueryEscape(s))
		fmt.Fprintf(&repeated, "a/%s/b\n", base64.StdEncoding.EncodeToString([]byte("x"+s+"y")))
	}
	list := func(kind string, items ...any) map[string]any {
		return map[string]any{"kind": kind, "apiVersion": "v1", "items": items}
	}
	const namespace = "/api/v1/namespaces/cluster-gateway-system/"
	const apiServices = "/apis/apiregistration.k8s.io/v1/apiservices"
	host, port, ca := h.replicaWith(t, c, repeated.String())
	apiService := map[string]any{
		"kind": "APIService", "apiVersion": "apiregistration.k8s.io/v1", "metadata": map[string]any{"name": "v1alpha1.cluster.core.oam.dev"},
		"spec": map[string]any{"caBundle": ca, "service": map[string]any{"name": "cluster-gateway", "namespace": "cluster-gateway-system", "port": port}},
	}
	h.answer("GET "+apiServices, list("APIServiceList", apiService))
	h.answer("GET "+apiServices+"/v1alpha1.cluster.core.oam.dev", apiService)
	h.answer("GET "+namespace+"services/cluster-gateway", map[string]any{"kind": "Service", "apiVersion": "v1",
		"metadata": map[string]any{"name": "cluster-gateway", "namespace": "cluster-gateway-system"}, "spec": map[string]any{"type": "ExternalName", "externalName": host}})
	container := map[string]any{
		"name": "cluster-gateway",
		"args": []any{"--tunnel-server-count=2", "--webhook-token=" + c.new("argument"), "--password", c.new("next argument"), "--header=Authorization: Bearer " + c.new("bearer in an argument"), "--url=https://jane:" + c.new("userinfo in an argument") + "@x"},
		"env": []any{
			map[string]any{"name": "A", "value": c.new("env")}, map[string]any{"name": "GOMEMLIMIT", "value": "512MiB"},
			map[string]any{"name": "HTTPS_PROXY", "value": "http://jane:" + c.new("HTTPS_PROXY") + "@proxy"},
			map[string]any{"name": "B", "valueFrom": map[string]any{"secretKeyRef": map[string]any{"name": "webhook-secret", "key": "webhook"}}},
		},
	}
	pod := map[string]any{
		"containers": []any{container, map[string]any{"name": "sidecar", "command": []any{"run", c.new("command of a sidecar")}, "args": []any{c.new("argument of a sidecar")}}},
		"volumes":    []any{map[string]any{"name": "a", "configMap": map[string]any{"name": "mounted"}}},
	}
	labels := map[string]any{"app.kubernetes.io/name": "cluster-gateway"}
	h.answer("GET /apis/apps/v1/namespaces/cluster-gateway-system/deployments", list("DeploymentList", map[string]any{"kind": "Deployment", "apiVersion": "apps/v1",
		"metadata": map[string]any{"name": "cluster-gateway", "managedFields": []any{map[string]any{"manager": c.new("managedFields")}}}, "spec": map[string]any{"template": map[string]any{"metadata": map[string]any{"labels": labels}, "spec": pod}}}))
	h.answer("GET "+namespace+"pods", list("PodList", map[string]any{"kind": "Pod", "apiVersion": "v1", "metadata": map[string]any{"name": "gateway-0", "namespace": "cluster-gateway-system", "labels": labels}, "spec": pod,
		"status": map[string]any{"containerStatuses": []any{map[string]any{"name": "cluster-gateway"}}}}))
	h.answer("GET "+namespace+"pods/gateway-0/log", "Started serving\n"+repeated.String()+
		"Authorization: Basic "+c.new("basic authentication")+"\nGET https://x/?a=b&token="+c.new("query")+"&c=d\n"+
		base64.StdEncoding.EncodeToString([]byte(c.newKey(t, "a key in base64 in the log")))+"\n"+c.newKey(t, "a key in the log")+c.newJWT("a token in the log")+
		"\n{\"msg\":\"{\\\"password\\\":\\\""+c.new("JSON in JSON")+"\\\"}\"}\nhttps%3A%2F%2Fjane%3A"+c.new("userinfo in a URL in a URL")+"%40x\n")
	mounted := fmt.Sprintf("clusters:\n- cluster: {server: https://webhook.example.com}\nusers:\n- user:\n    token: %s\n    password: '%s'\n", c.new("ConfigMap"), c.new("password in a ConfigMap"))
	configMap := func(name, key, value string) map[string]any {
		return map[string]any{"kind": "ConfigMap", "apiVersion": "v1", "metadata": map[string]any{"name": name}, "data": map[string]any{key: value}}
	}
	h.answer("GET "+namespace+"configmaps", list("ConfigMapList", configMap("mounted", "kubeconfig", mounted), configMap("other", "unused", c.new("a ConfigMap of others")),
		configMap("cluster-gateway-tunnel", "address", "tunnel.example.com:8132")))
	h.answer("GET /apis/coordination.k8s.io/v1/namespaces/cluster-gateway-system/leases", forbidden("cannot list leases with Bearer "+c.new("an error")))
	h.answer("GET "+namespace+"events", list("EventList"))
	h.answer("GET /api/v1/namespaces/default/events", list("EventList", map[string]any{"kind": "Event", "apiVersion": "v1", "metadata": map[string]any{"name": "a"},
		"reason": "AgentConnected", "message": "https://jane:" + c.new("userinfo in an Event") + "@x " + repeated.String()}))
}

// replicaWith starts the own endpoint of a gateway, at which the caller's credential is required.
func (h *fakeHub) replicaWith(t *testing.T, c canaries, repeated string) (host string, port int, ca []byte) {
	t.Helper()
	metrics := fmt.Sprintf("cluster_gateway_ready{cluster=%q} 1\na{b=\"https://jane:%s@x\"} 1\n# %s", "edge-1", c.new("userinfo in a metric"), repeated)
	tunnels := fmt.Sprintf(`{"clusters":[{"cluster": "edge-1","agents":[{"lastError":"token=%s"}]}]}`, c.new("an error of an agent"))
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+c["the caller's token"] {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, _ = io.WriteString(w, map[string]string{
			"/version": `{"gitVersion":"v0.1.0"}`, "/readyz": "ok", "/metrics": metrics, "/debug/tunnels": tunnels,
		}[r.URL.Path])
	}))
	authority := testAuthority(t)
	certificate, key, err := authority.IssueServing([]string{"cluster-gateway.cluster-gateway-system.svc"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		t.Fatal(err)
	}
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13}
	server.StartTLS()
	t.Cleanup(server.Close)
	host, text, err := net.SplitHostPort(server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if port, err = strconv.Atoi(text); err != nil {
		t.Fatal(err)
	}
	return host, port, authority.Bundle()
}

// clusterWith registers a cluster that answers, and one that does not.
func (h *fakeHub) clusterWith(c canaries) {
	edge := testCluster("edge-1", "tunnel", metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "Healthy"})
	edge.Spec.Access.Endpoint = &v1alpha1.ClusterEndpoint{Const: &v1alpha1.ClusterEndpointConst{Address: "https://jane:" + c.new("endpoint") + "@edge-1.example.com:6443"}}
	edge.Annotations["example.com/note"] = c.new("annotation of a ClusterGateway")
	dead := testCluster("edge-2", "tunnel", metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Reason: "NoAgent", Message: "Bearer " + c.new("a condition")})
	for _, cluster := range []*v1alpha1.ClusterGateway{edge, dead} {
		h.add(cluster)
	}
	h.answer("GET "+gatewayPath+"/clustergateways", clusterList(*edge, *dead))
	h.answer("GET "+v1alpha1.ProxyPath("edge-2")+"/version", failure(503, v1alpha1.CauseEndpoint, "dial https://jane:"+c.new("an error of a cluster")+"@x: refused"))
	agent := map[string]any{"metadata": map[string]any{"name": "a", "annotations": map[string]any{"x": c.new("annotation of an agent")}}, "spec": map[string]any{"containers": []any{
		map[string]any{"name": "konnectivity-agent", "env": []any{map[string]any{"name": "A", "value": c.new("env of an agent")}}}}}}
	namespace := v1alpha1.ProxyPath("edge-1") + "/api/v1/namespaces/cluster-gateway-agent/"
	h.answer("GET "+v1alpha1.ProxyPath("edge-1")+"/apis/apps/v1/namespaces/cluster-gateway-agent/deployments", map[string]any{"kind": "DeploymentList", "apiVersion": "apps/v1",
		"items": []any{map[string]any{"metadata": map[string]any{"name": "konnectivity-agent"}, "spec": map[string]any{"template": agent}, "status": map[string]any{"readyReplicas": 1}}}})
	h.answer("GET "+namespace+"pods", map[string]any{"kind": "PodList", "apiVersion": "v1", "items": []any{agent}})
	h.answer("GET "+namespace+"events", map[string]any{"kind": "EventList", "apiVersion": "v1", "items": []any{}})
}

// TestSupportBundleWithoutKubelet shows that the bundle says what is missing and why, if the hub
// cannot reach the kubelets of the gateway's Pods: then there are no logs and no port-forward.
func TestSupportBundleWithoutKubelet(t *testing.T) {
	t.Parallel()
	h := newFakeHub(t)
	h.gatewayWith(t, canaries{}, nil)
	const namespace = "/api/v1/namespaces/cluster-gateway-system/"
	h.answer("GET "+namespace+"services/cluster-gateway", map[string]any{"kind": "Service", "apiVersion": "v1",
		"metadata": map[string]any{"name": "cluster-gateway", "namespace": "cluster-gateway-system"}, "spec": map[string]any{"ports": []any{map[string]any{"port": 8443}}}})
	service := map[string]any{"name": "cluster-gateway", "namespace": "cluster-gateway-system", "port": 8443}
	const apiService = "GET /apis/apiregistration.k8s.io/v1/apiservices/v1alpha1.cluster.core.oam.dev"
	spec := map[string]any{"service": service, "caBundle": h.answers[apiService].(map[string]any)["spec"].(map[string]any)["caBundle"]}
	o := map[string]any{"kind": "APIService", "apiVersion": "apiregistration.k8s.io/v1", "metadata": map[string]any{"name": "v1alpha1.cluster.core.oam.dev"}, "spec": spec}
	h.answer(apiService, o)
	h.answer("GET /apis/apiregistration.k8s.io/v1/apiservices", map[string]any{"kind": "APIServiceList", "apiVersion": "v1", "items": []any{o}})
	h.answer("GET /apis/discovery.k8s.io/v1/namespaces/cluster-gateway-system/endpointslices", map[string]any{"kind": "EndpointSliceList", "apiVersion": "discovery.k8s.io/v1", "items": []any{map[string]any{
		"metadata": map[string]any{"name": "a", "namespace": "cluster-gateway-system"}, "ports": []any{map[string]any{"name": "", "port": 1}},
		"endpoints": []any{map[string]any{"addresses": []any{"127.0.0.1"}, "targetRef": map[string]any{"kind": "Pod", "name": "gateway-0"}}},
	}}})
	const refused = "dial tcp 10.0.0.9:10250: i/o timeout"
	unreachable := &metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Code: http.StatusInternalServerError, Message: refused}
	h.answer("GET "+namespace+"pods/gateway-0/log", unreachable)
	h.answer("POST "+namespace+"pods/gateway-0/portforward", unreachable)

	path := filepath.Join(t.TempDir(), "bundle.tar.gz")
	_, said, err := h.run(t, "support-bundle", "--out", path)
	if err == nil || !strings.Contains(err.Error(), "parts are missing") {
		t.Errorf("%v\n%s", err, said)
	}
	index := readBundle(t, path)["index.yaml"]
	for _, want := range []string{"what: logs/gateway-0/cluster-gateway.log", "what: the state of the replica gateway-0", "connection refused", refused, "reason: '" + refused + "'"} {
		if !strings.Contains(index, want) {
			t.Errorf("index.yaml has no %q:\n%s", want, index)
		}
	}
	if n := strings.Count(index, "replica gateway-0"); n != 1 {
		t.Errorf("the replica is named %d times:\n%s", n, index)
	}
	for _, want := range []string{"0 of 1 replicas answer", "0 logs of 1 Pods"} {
		if !strings.Contains(said, want) {
			t.Errorf("the command does not say %q:\n%s", want, said)
		}
	}
}
