// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

func TestKubeconfigInput(t *testing.T) {
	t.Parallel()
	h := newFakeHub(t)
	h.add(testCluster("edge-1", "tunnel"))
	notPEM := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(notPEM, []byte("none"), 0o600); err != nil {
		t.Fatal(err)
	}
	gateway := func(more ...string) []string {
		return append([]string{"edge-1", "--endpoint", "gateway", "--gateway-address", "gateway:8443"}, more...)
	}
	for want, args := range map[string][]string{
		`invalid cluster name "Edge"`:                                                  {"Edge"},
		`invalid --endpoint "pod": must be hub or gateway`:                             {"edge-1", "--endpoint", "pod"},
		"--endpoint=gateway requires --gateway-address HOST:PORT":                      {"edge-1", "--endpoint", "gateway"},
		"--gateway-address and --gateway-ca-file require --endpoint=gateway":           {"edge-1", "--gateway-ca-file", "ca.crt"},
		`invalid --gateway-address "http://a": must be host:port`:                      {"edge-1", "--endpoint", "gateway", "--gateway-address", "http://a"},
		`invalid --gateway-ca-file "` + notPEM + `": it has no certificate in PEM`:     gateway("--gateway-ca-file", notPEM),
		"cannot read the gateway's CA from its APIService on the hub":                  gateway(),
		`invalid --output "-": --merge needs a file`:                                   {"edge-1", "--merge", "-o", "-"},
		"--force requires --merge or -o FILE":                                          {"edge-1", "--force"},
		`cluster "edge-2" is not registered.`:                                          {"edge-2"},
		"invalid --endpoint \"pod\": must be hub or gateway\ninvalid --output \"-\": ": {"edge-1", "--endpoint", "pod", "--merge", "-o", "-"},
	} {
		if out, _, err := h.run(t, append([]string{"kubeconfig"}, args...)...); err == nil || !strings.Contains(err.Error(), want) || out != "" {
			t.Errorf("kubeconfig %v: %v\nwant %s\n%s", args, err, want, out)
		}
	}
}

// TestKubeconfigPrints shows what the command prints, besides the kubeconfig.
func TestKubeconfigPrints(t *testing.T) {
	t.Parallel()
	h := newFakeHub(t)
	h.add(testCluster("edge-1", "tunnel"))
	printed, errOut, err := h.run(t, "kubeconfig", "edge-1")
	if err != nil || errOut != "" {
		t.Fatalf("%v\n%s", err, errOut)
	}
	config, err := clientcmd.Load([]byte(printed))
	if err != nil || config.CurrentContext != "edge-1" || config.AuthInfos["edge-1"].Token != "jane's" ||
		!strings.HasSuffix(config.Clusters["edge-1"].Server, v1alpha1.ProxyPath("edge-1")) {
		t.Errorf("%v\n%s", err, printed)
	}
	// The same for a caller who may not read the ClusterGateway.
	h.answer("GET "+gatewayPath+"/clustergateways/edge-1", forbidden("cannot get resource"))
	if again, _, err := h.run(t, "kubeconfig", "edge-1", "--dry-run"); err != nil || again != printed {
		t.Errorf("%v\n%s", err, again)
	}

	file := filepath.Join(t.TempDir(), "config")
	run := func(want string, args ...string) {
		t.Helper()
		out, errOut, err := h.run(t, append([]string{"kubeconfig", "edge-1", "-o", file}, args...)...)
		if err != nil || out != "" {
			t.Errorf("%v: %v\n%s", args, err, out)
		}
		if diff := cmp.Diff(want, strings.ReplaceAll(errOut, file, "FILE")); diff != "" {
			t.Errorf("%v (-want +got):\n%s", args, diff)
		}
	}
	run(`Dry run: nothing was changed. In FILE:
  cluster "edge-1" would be added
  user "edge-1" would be added
  context "edge-1" would be added
  current-context would be set
`, "--merge", "--dry-run")
	run(`The context "edge-1" is in FILE.
To use it:
  kubectl --kubeconfig FILE --context edge-1 get namespaces
kubectl proxy needs another flag, or it serves the objects of the hub:
  kubectl --kubeconfig FILE --context edge-1 proxy --append-server-path
`, "--merge")
	run(`The context "edge-1" in FILE is up to date.
To use it:
  kubectl --kubeconfig FILE get namespaces
kubectl proxy needs another flag, or it serves the objects of the hub:
  kubectl --kubeconfig FILE proxy --append-server-path
`)
	if readText(t, file) != printed {
		t.Errorf("the file has\n%s\nwant\n%s", readText(t, file), printed)
	}
	run(`The context "mine" is in FILE.
The previous file is kept in FILE.agent-bootstrap.bak.
To use it:
  kubectl --kubeconfig FILE --context mine get namespaces
kubectl proxy needs another flag, or it serves the objects of the hub:
  kubectl --kubeconfig FILE --context mine proxy --append-server-path
`, "--merge", "--name", "mine")

	// Another hub has a cluster of the same name.
	other := newFakeHub(t)
	other.add(testCluster("edge-1", "tunnel"))
	before := readText(t, file)
	_, errOut, err = other.run(t, "kubeconfig", "edge-1", "-o", file, "--merge", "--dry-run")
	if err == nil || !strings.Contains(err.Error(), `user "edge-1": it is for another hub, https://`) || !strings.Contains(errOut, `user "edge-1" would be refused: it is for another hub`) || readText(t, file) != before {
		t.Errorf("%v\n%s", err, errOut)
	}
	if _, _, err := other.run(t, "kubeconfig", "edge-1", "-o", file, "--merge", "--name", "other-edge-1"); err != nil {
		t.Error(err)
	}
	if config, err := clientcmd.LoadFromFile(file); err != nil || len(config.Contexts) != 3 || config.CurrentContext != "edge-1" {
		t.Errorf("%v: %+v", err, config)
	}
}

// TestKubeconfigMergesIntoTheFileThatKubectlConfigChanges compares the file that --merge writes to
// with that of kubectl config: the one in --kubeconfig, if it is set.
func TestKubeconfigMergesIntoTheFileThatKubectlConfigChanges(t *testing.T) {
	h := newFakeHub(t)
	h.fleetOf("edge-1")
	h.add(testCluster("edge-1", "tunnel"))
	for _, explicit := range []bool{true, false} {
		for name, args := range map[string][]string{"one cluster": {"edge-1"}, "all clusters": {"--all"}} {
			hub := readText(t, h.kubeconfig)
			file := filepath.Join(t.TempDir(), "config")
			own := filepath.Join(t.TempDir(), "own")
			for _, path := range []string{file, own} {
				if err := os.WriteFile(path, []byte(hub), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			t.Setenv("KUBECONFIG", own)
			want, left := own, file
			args = append([]string{"kubeconfig", "--merge"}, args...)
			if explicit {
				want, left, args = file, own, append(args, "--kubeconfig", file)
			} else {
				args = append(args, "--kubeconfig=") // h.run sets it
			}
			_, errOut, err := h.run(t, args...)
			if err != nil || !strings.Contains(errOut, want) {
				t.Errorf("%s, explicit %t: %v\n%s", name, explicit, err, errOut)
			}
			if config, err := clientcmd.LoadFromFile(want); err != nil || config.Contexts["edge-1"] == nil || config.CurrentContext != "hub" {
				t.Errorf("%s, explicit %t: %v, %+v", name, explicit, err, config)
			}
			if readText(t, left) != hub {
				t.Errorf("%s, explicit %t: the other file was changed", name, explicit)
			}
			if hint := "kubectl --kubeconfig " + file; name == "one cluster" && strings.Contains(errOut, hint) != explicit {
				t.Errorf("explicit %t, and the hint is\n%s", explicit, errOut)
			}
		}
	}
}

// TestKubeconfigGatewayEndpoint shows that an entry for the gateway's own endpoint keeps what does
// not depend on the server, and drops what does.
func TestKubeconfigGatewayEndpoint(t *testing.T) {
	t.Parallel()
	h := newFakeHub(t)
	h.add(testCluster("edge-1", "tunnel"))
	h.answer("GET /apis/apiregistration.k8s.io/v1/apiservices/v1alpha1.cluster.core.oam.dev", map[string]any{
		"kind": "APIService", "apiVersion": "apiregistration.k8s.io/v1",
		"spec": map[string]any{"caBundle": []byte("the gateway's CA"), "service": map[string]any{"name": "gateway", "namespace": "system"}},
	})
	hub, err := clientcmd.LoadFromFile(h.kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	hub.Clusters["hub"].DisableCompression = true
	hub.Clusters["hub"].TLSServerName = "example.com" // the name in the certificate of httptest
	hub.Clusters["hub"].Extensions = map[string]runtime.Object{"client.authentication.k8s.io/exec": &runtime.Unknown{Raw: []byte(`{"audience":"a"}`), ContentType: runtime.ContentTypeJSON}}
	if err := clientcmd.WriteToFile(*hub, h.kubeconfig); err != nil {
		t.Fatal(err)
	}
	out, _, err := h.run(t, "kubeconfig", "edge-1", "--endpoint", "gateway", "--gateway-address", "gateway:8443")
	if err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.Load([]byte(out))
	if err != nil {
		t.Fatal(err)
	}
	want := kubeconfigEntry{cluster: &clientcmdapi.Cluster{
		Server: "https://gateway:8443" + v1alpha1.ProxyPath("edge-1"), TLSServerName: "gateway.system.svc", CertificateAuthorityData: []byte("the gateway's CA"),
		DisableCompression: true, Extensions: hub.Clusters["hub"].Extensions,
	}}
	if diff := cmp.Diff(entryText(t, want), entryText(t, kubeconfigEntry{cluster: config.Clusters["edge-1"]})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
