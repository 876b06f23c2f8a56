// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package docs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/client"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
)

// credentialLabel and endpointLabel are written out, because users have them in their Secrets.
const (
	credentialLabel = "cluster.core.oam.dev/cluster-credential-type"
	endpointLabel   = "cluster.core.oam.dev/cluster-endpoint-type"
)

// migrated is a Secret that works with the predecessor, and what becomes of it here.
type migrated struct {
	labels, annotations, data map[string]string
	opts                      cluster.ParseOptions
	// problem is part of the message of a Secret that is refused. Empty: it works.
	problem  string
	route    cluster.Route
	endpoint string
	insecure bool
	// systemRoots says that the system's CAs verify the cluster.
	systemRoots bool
}

// TestMigratingSecrets tries each line of the tables in docs/migrating.md that is about Secrets.
func TestMigratingSecrets(t *testing.T) {
	cert, key := selfSigned(t)
	plugins := t.TempDir()
	plugin := filepath.Join(plugins, "aws-iam-authenticator")
	if err := os.WriteFile(plugin, []byte("#!/bin/sh\n"), 0o755); err != nil { //nolint:gosec // it must be a program
		t.Fatal(err)
	}
	exec := func(command string) string {
		return `{"apiVersion":"client.authentication.k8s.io/v1beta1","command":"` + command + `","args":["token"]}`
	}
	token := map[string]string{credentialLabel: "ServiceAccountToken", endpointLabel: "Const"}
	tunnel := map[string]string{credentialLabel: "ServiceAccountToken", endpointLabel: "ClusterProxy"}
	data := func(more ...string) map[string]string {
		all := map[string]string{"endpoint": "https://10.0.0.1:6443", "ca.crt": cert, "token": "abc"}
		for i := 0; i < len(more); i += 2 {
			all[more[i]] = more[i+1]
		}
		maps.DeleteFunc(all, func(_, v string) bool { return v == "-" })
		return all
	}
	const endpoint = "https://10.0.0.1:6443"

	const malformed = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"

	stays := map[string]migrated{
		"a certificate in `ca.crt` that cannot be parsed, beside others": {labels: token, data: data("ca.crt", malformed+cert), route: cluster.RouteDirect, endpoint: endpoint},
		"credential type `ServiceAccountToken` with `token`":             {labels: token, data: data(), route: cluster.RouteDirect, endpoint: endpoint},
		"credential type `X509Certificate` with `tls.crt` and `tls.key`": {labels: map[string]string{credentialLabel: "X509Certificate"},
			data: data("token", "-", "tls.crt", cert, "tls.key", key), route: cluster.RouteDirect, endpoint: endpoint},
		"endpoint type `Const`, or no such label":         {labels: map[string]string{credentialLabel: "ServiceAccountToken"}, data: data(), route: cluster.RouteDirect, endpoint: endpoint},
		"`ca` instead of `ca.crt`":                        {labels: token, data: data("ca.crt", "-", "ca", cert), route: cluster.RouteDirect, endpoint: endpoint},
		"`endpoint` or `token` with a newline at the end": {labels: token, data: data("endpoint", endpoint+"\n", "token", "abc\n"), route: cluster.RouteDirect, endpoint: endpoint},
		"`endpoint` with a path":                          {labels: token, data: data("endpoint", "https://rancher.example.com/k8s/clusters/c-1"), route: cluster.RouteDirect, endpoint: "https://rancher.example.com:443/k8s/clusters/c-1"},
		"`proxy-url`":                                     {labels: token, data: data("proxy-url", "socks5://10.0.0.9:1080"), route: cluster.RouteDirect, endpoint: endpoint},
		"other keys, such as `namespace`":                 {labels: token, data: data("namespace", "kube-system"), route: cluster.RouteDirect, endpoint: endpoint},
		"annotations `status.cluster.core.oam.dev/healthy` and `healthy-reason`": {labels: token,
			annotations: map[string]string{"status.cluster.core.oam.dev/healthy": "true", "status.cluster.core.oam.dev/healthy-reason": "Fine"}, data: data(), route: cluster.RouteDirect, endpoint: endpoint},
		"KubeVela's labels and annotations, such as `cluster.core.oam.dev/cluster-alias`": {labels: token,
			annotations: map[string]string{"cluster.core.oam.dev/cluster-alias": "prod"}, data: data(), route: cluster.RouteDirect, endpoint: endpoint},
	}
	changes := map[string]migrated{
		"no CA, or an empty `ca.crt`":  {labels: token, data: data("ca.crt", ""), route: cluster.RouteDirect, endpoint: endpoint, systemRoots: true},
		"endpoint type `ClusterProxy`": {labels: tunnel, data: data("endpoint", "-"), route: cluster.RouteTunnel, endpoint: "https://kubernetes.default.svc:443"},
		"`ClusterProxy` with an existing konnectivity-server": {labels: tunnel, data: data("endpoint", "-"),
			opts: cluster.ParseOptions{TunnelMode: cluster.TunnelExternal}, route: cluster.RouteTunnel, endpoint: "https://foo1:443"},
		"credential type `Dynamic` with `exec`": {labels: map[string]string{credentialLabel: "Dynamic"}, data: data("token", "-", "exec", exec(plugin)),
			opts: cluster.ParseOptions{ExecCredentialDir: plugins}, route: cluster.RouteDirect, endpoint: endpoint},
		"the annotation `cluster-gateway-proxy-configuration`": {labels: token,
			annotations: map[string]string{"cluster.core.oam.dev/cluster-gateway-proxy-configuration": "spec: {clientIdentityExchanger: {rules: []}}"},
			data:        data(), route: cluster.RouteDirect, endpoint: endpoint},
		"an unverified cluster": {labels: token, annotations: map[string]string{"cluster.core.oam.dev/insecure-skip-tls-verify": "true"},
			data: data("ca.crt", "-"), route: cluster.RouteDirect, endpoint: endpoint, insecure: true},
	}
	refused := map[string]migrated{
		"another endpoint type, such as `Direct`":  {labels: map[string]string{credentialLabel: "ServiceAccountToken", endpointLabel: "Direct"}, data: data(), problem: endpointLabel},
		"`ClusterProxy` without a CA":              {labels: tunnel, data: data("endpoint", "-", "ca.crt", "-"), problem: "ca.crt"},
		"`endpoint` without `https://`":            {labels: token, data: data("endpoint", "10.0.0.1:6443"), problem: "endpoint"},
		"`endpoint` with `http://`":                {labels: token, data: data("endpoint", "http://10.0.0.1:8080"), problem: "endpoint"},
		"`exec` without `--exec-credential-dir`":   {labels: map[string]string{credentialLabel: "Dynamic"}, data: data("token", "-", "exec", exec(plugin)), problem: "--exec-credential-dir"},
		"`exec` with a program in another place":   {labels: map[string]string{credentialLabel: "Dynamic"}, data: data("token", "-", "exec", exec("/bin/sh")), opts: cluster.ParseOptions{ExecCredentialDir: plugins}, problem: "exec"},
		"`exec` with a command that is not a path": {labels: map[string]string{credentialLabel: "Dynamic"}, data: data("token", "-", "exec", exec("aws")), opts: cluster.ParseOptions{ExecCredentialDir: plugins}, problem: "exec"},
		"`exec` with `env`": {labels: map[string]string{credentialLabel: "Dynamic"}, data: data("token", "-", "exec", strings.Replace(exec(plugin), `"args"`, `"env":[{"name":"A","value":"b"}],"args"`, 1)),
			opts: cluster.ParseOptions{ExecCredentialDir: plugins}, problem: "--exec-credential-plugins"},
		"`exec` of `v1alpha1`": {labels: map[string]string{credentialLabel: "Dynamic"}, data: data("token", "-", "exec", `{"apiVersion":"client.authentication.k8s.io/v1alpha1","command":"`+plugin+`"}`),
			opts: cluster.ParseOptions{ExecCredentialDir: plugins}, problem: "apiVersion"},
		"no certificate in `ca.crt` that can be parsed": {labels: token, data: data("ca.crt", malformed), problem: "ca.crt"},
		"the annotation `cluster-gateway-proxy-configuration` with rules that cannot be used": {labels: token,
			annotations: map[string]string{"cluster.core.oam.dev/cluster-gateway-proxy-configuration": "spec: {clientIdentityExchanger: {rules: [{name: a}]}}"},
			data:        data(), problem: "cluster-gateway-proxy-configuration"},
		"`tls.key` that is encrypted": {labels: map[string]string{credentialLabel: "X509Certificate"},
			data: data("token", "-", "tls.crt", cert, "tls.key", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n"), problem: "tls.key"},
	}

	p := readPage(t, "docs/migrating.md")
	for heading, cases := range map[string]map[string]migrated{
		"Secrets that work unchanged": stays, "Secrets that work differently": changes, "Secrets that are refused": refused,
	} {
		documented := map[string]bool{}
		for _, row := range p.table(t, heading) {
			documented[row[0]] = true
			test, ok := cases[row[0]]
			if !ok {
				t.Errorf("no test tries the line %q below %q", row[0], heading)
				continue
			}
			t.Run(row[0], func(t *testing.T) { test.try(t) })
		}
		for name := range cases {
			if !documented[name] {
				t.Errorf("docs/migrating.md has no line %q below %q", name, heading)
			}
		}
	}
}

func (m migrated) secret() *corev1.Secret {
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "foo1", Namespace: "vela-system", Labels: m.labels, Annotations: m.annotations}, Data: map[string][]byte{}}
	for k, v := range m.data {
		s.Data[k] = []byte(v)
	}
	return s
}

func (m migrated) try(t *testing.T) {
	c := cluster.Parse(m.secret(), m.opts)
	if m.problem != "" {
		if c.Err() == nil || !strings.Contains(c.Err().Error(), m.problem) {
			t.Fatalf("the error is %v; it must name %s", c.Err(), m.problem)
		}
		return
	}
	if err := c.Err(); err != nil {
		t.Fatal(err)
	}
	if c.Route != m.route || c.Endpoint.String() != m.endpoint || c.Insecure != m.insecure {
		t.Errorf("route %v, endpoint %s, insecure %v", c.Route, c.Endpoint, c.Insecure)
	}
	config, err := c.TLSConfig()
	if err != nil {
		t.Fatal(err)
	}
	if config.InsecureSkipVerify != m.insecure || (config.RootCAs == nil) != (m.systemRoots || m.insecure) {
		t.Errorf("unverified %v, own CAs %v", config.InsecureSkipVerify, config.RootCAs != nil)
	}
}

// TestMigratingClients shows that the path of a cluster and the fields of a ClusterGateway are the
// predecessor's.
func TestMigratingClients(t *testing.T) {
	const kubeconfig = `
apiVersion: v1
kind: Config
clusters:
- {name: hub, cluster: {server: "https://hub.example.com:6443"}}
- {name: foo1, cluster: {server: "https://hub.example.com:6443/apis/cluster.core.oam.dev/v1alpha1/clustergateways/foo1/proxy"}}
contexts:
- {name: hub, context: {cluster: hub, user: me}}
- {name: foo1, context: {cluster: foo1, user: me}}
current-context: hub
users:
- {name: me, user: {token: abc}}
`
	loaded, err := clientcmd.Load([]byte(kubeconfig))
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := clientcmd.NewDefaultClientConfig(*loaded, &clientcmd.ConfigOverrides{CurrentContext: "foo1"}).ClientConfig()
	if err != nil {
		t.Fatal(err)
	}
	hub, err := clientcmd.NewDefaultClientConfig(*loaded, nil).ClientConfig()
	if err != nil {
		t.Fatal(err)
	}
	ours, err := client.ForCluster(hub, "foo1")
	if err != nil {
		t.Fatal(err)
	}
	if ours.Host != theirs.Host {
		t.Errorf("the path of a cluster is %s, and the predecessor's is %s", ours.Host, theirs.Host)
	}

	cert, key := selfSigned(t)
	m := migrated{labels: map[string]string{credentialLabel: "X509Certificate"}, data: map[string]string{
		"endpoint": "https://10.0.0.1:6443", "ca.crt": cert, "tls.crt": cert, "tls.key": key, "proxy-url": "http://10.0.0.9:3128"}}
	object := cluster.Render(m.secret(), m.opts)
	text, err := json.Marshal(object.Spec)
	if err != nil {
		t.Fatal(err)
	}
	var spec struct {
		Access struct {
			Endpoint struct {
				Type  string
				Const map[string]any
			}
			Credential struct {
				Type string
				X509 map[string]any
			}
		}
	}
	if err := json.Unmarshal(text, &spec); err != nil {
		t.Fatal(err)
	}
	if spec.Access.Endpoint.Type != "Const" || spec.Access.Credential.Type != "X509Certificate" {
		t.Errorf("%s", text)
	}
	for _, field := range []string{"address", "caBundle", "proxy-url"} {
		if spec.Access.Endpoint.Const[field] == nil {
			t.Errorf("spec.access.endpoint.const has no %s", field)
		}
	}
	if spec.Access.Credential.X509["certificate"] == nil || spec.Access.Credential.X509["privateKey"] != nil {
		t.Errorf("spec.access.credential.x509 is %v; it must have the certificate, and must not have the key", spec.Access.Credential.X509)
	}
	if v1alpha1.SchemeGroupVersion.String() != "cluster.core.oam.dev/v1alpha1" {
		t.Error(v1alpha1.SchemeGroupVersion)
	}
}

func selfSigned(t *testing.T) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kubernetes"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	block := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	return block("CERTIFICATE", der), block("PRIVATE KEY", keyDER)
}
