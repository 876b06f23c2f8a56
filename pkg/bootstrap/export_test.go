// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/yaml"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/inventory"
)

// exportHub is a hub whose kubeconfig has everything that must not be exported.
func exportHub(t *testing.T) *fakeHub {
	t.Helper()
	h := newFakeHub(t)
	h.add(testCluster("edge-1", "tunnel"))
	config, err := clientcmd.LoadFromFile(h.kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	config.Clusters["hub"].Extensions = map[string]runtime.Object{"client.authentication.k8s.io/exec": &runtime.Unknown{Raw: []byte(`{"key":"SECRET-extension"}`), ContentType: runtime.ContentTypeJSON}}
	config.AuthInfos["jane"].Token = "SECRET-token"
	config.AuthInfos["jane"].Extensions = config.Clusters["hub"].Extensions
	if err := clientcmd.WriteToFile(*config, h.kubeconfig); err != nil {
		t.Fatal(err)
	}
	return h
}

// TestExport decodes each format as its reader does, and reaches the cluster with it.
func TestExport(t *testing.T) {
	t.Parallel()
	h := exportHub(t)
	var caller string
	h.check = func(r *http.Request) {
		if r.URL.Path == v1alpha1.ProxyPath("edge-1")+"/version" {
			caller = r.Header.Get("Authorization")
		}
	}
	tokenFile := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(tokenFile, []byte("of-the-program"), 0o600); err != nil {
		t.Fatal(err)
	}
	kubeconfig := func(text string) *rest.Config {
		config, err := clientcmd.RESTConfigFromKubeConfig([]byte(text))
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		return config
	}
	secret := func(text string) *corev1.Secret {
		s := &corev1.Secret{}
		if err := yaml.UnmarshalStrict([]byte(text), s); err != nil || s.Kind != "Secret" || s.Name != "cluster-gateway-edge-1" {
			t.Fatalf("%v\n%s", err, text)
		}
		return s
	}
	for format, c := range map[string]struct {
		config func(text string) *rest.Config
		caller string
	}{
		"kubeconfig": {kubeconfig, "Bearer of-the-program"},
		"headlamp":   {kubeconfig, ""},
		// Flux takes over the token that client-go reads, but not the name of the file.
		"flux": {func(text string) *rest.Config {
			s := secret(text)
			if s.Namespace != "flux-system" {
				t.Errorf("the namespace is %q", s.Namespace)
			}
			in := kubeconfig(s.StringData["value"])
			return &rest.Config{Host: in.Host, BearerToken: in.BearerToken, TLSClientConfig: rest.TLSClientConfig{CAData: in.CAData, ServerName: in.ServerName}}
		}, "Bearer of-the-program"},
		// The fields of the API that its package reads, which is what test/e2e/inventory does.
		"clusterprofile": {func(text string) *rest.Config {
			p := &inventory.Profile{}
			if err := yaml.UnmarshalStrict([]byte(text), p); err != nil {
				t.Fatalf("%v\n%s", err, text)
			}
			if c := p.Status.Conditions; p.Kind != "ClusterProfile" || p.Metadata.Namespace != "cluster-inventory" || p.Status.Version.Kubernetes != "v1.36.1" || len(c) != 1 || c[0].LastTransitionTime.IsZero() {
				t.Errorf("the profile is %s", text)
			}
			to := p.Status.AccessProviders[0]
			return &rest.Config{Host: to.Cluster.Server, BearerTokenFile: tokenFile, TLSClientConfig: rest.TLSClientConfig{CAData: to.Cluster.CertificateAuthorityData}}
		}, "Bearer of-the-program"},
		"argocd": {func(text string) *rest.Config {
			s := secret(text)
			if s.Namespace != "argocd" || s.Labels["argocd.argoproj.io/secret-type"] != "cluster" || s.StringData["name"] != "edge-1" {
				t.Errorf("the Secret is %s", text)
			}
			// The documented fields of the key config.
			var config struct {
				TLS struct {
					Insecure   bool   `json:"insecure"`
					ServerName string `json:"serverName"`
					CAData     []byte `json:"caData"`
				} `json:"tlsClientConfig"`
				Exec struct {
					Command    string   `json:"command"`
					Args       []string `json:"args"`
					APIVersion string   `json:"apiVersion"`
				} `json:"execProviderConfig"`
			}
			if err := yaml.UnmarshalStrict([]byte(s.StringData["config"]), &config); err != nil || config.TLS.Insecure {
				t.Fatalf("%v\n%s", err, s.StringData["config"])
			}
			return &rest.Config{
				Host: s.StringData["server"], TLSClientConfig: rest.TLSClientConfig{CAData: config.TLS.CAData, ServerName: config.TLS.ServerName},
				ExecProvider: &clientcmdapi.ExecConfig{
					Command: config.Exec.Command, Args: config.Exec.Args, APIVersion: config.Exec.APIVersion, InteractiveMode: clientcmdapi.NeverExecInteractiveMode,
				},
			}
		}, "Bearer of-the-program"},
	} {
		out, errOut, err := h.run(t, "export", "edge-1", "--format", format, "--token-file", tokenFile, "--command", standIn(t, "agent-bootstrap"))
		if err != nil {
			t.Fatalf("%s: %v\n%s", format, err, errOut)
		}
		if strings.Contains(out, "SECRET-") || strings.Contains(out, "of-the-program") {
			t.Errorf("%s has a secret:\n%s", format, out)
		}
		config := c.config(out)
		config.WarningHandler = rest.NoWarnings{}
		if !strings.HasSuffix(config.Host, v1alpha1.ProxyPath("edge-1")) {
			t.Errorf("%s: the server is %s", format, config.Host)
		}
		caller = "nobody"
		client, err := kubernetes.NewForConfig(config)
		if err != nil {
			t.Fatal(err)
		}
		version, err := client.Discovery().ServerVersion()
		if err != nil || version.GitVersion != "v1.36.1" || caller != c.caller {
			t.Errorf("%s: version %v, %v; the caller is %q, want %q", format, version, err, caller, c.caller)
		}
	}

	out, _, err := h.run(t, "export", "edge-1", "--format", "kubeconfig", "--server", "https://kubernetes.default.svc/")
	if err != nil || !strings.Contains(out, "server: https://kubernetes.default.svc"+v1alpha1.ProxyPath("edge-1")+"\n") || !strings.Contains(out, "tokenFile: "+podTokenFile+"\n") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestExportRefuses(t *testing.T) {
	t.Parallel()
	h := exportHub(t)
	for want, args := range map[string][]string{
		`invalid --format "": must be kubeconfig, argocd, flux, headlamp or clusterprofile`: {"edge-1"},
		`invalid --server "http://a": must be an https URL`:                                 {"edge-1", "--format", "flux", "--server", "http://a"},
		"it cannot be used with --endpoint=gateway":                                         {"edge-1", "--format", "flux", "--server", "https://a", "--endpoint", "gateway", "--gateway-address", "a"},
		`invalid --token-file "token": must be an absolute path`:                            {"edge-1", "--format", "flux", "--token-file", "token"},
		`cluster "edge-2" is not registered`:                                                {"edge-2", "--format", "flux"},
	} {
		if out, _, err := h.run(t, append([]string{"export"}, args...)...); err == nil || !strings.Contains(err.Error(), want) || out != "" {
			t.Errorf("export %v: %v\nwant %s\n%s", args, err, want, out)
		}
	}
	config, err := clientcmd.LoadFromFile(h.kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	config.Clusters["hub"].InsecureSkipTLSVerify, config.Clusters["hub"].CertificateAuthorityData = true, nil
	if err := clientcmd.WriteToFile(*config, h.kubeconfig); err != nil {
		t.Fatal(err)
	}
	if out, _, err := h.run(t, "export", "edge-1", "--format", "flux"); err == nil || !strings.Contains(err.Error(), "it does not verify the hub") || out != "" {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestCredential(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "token")
	token := "e30." + base64.RawURLEncoding.EncodeToString([]byte(fmt.Sprintf(`{"exp":%d}`, testNow.Unix()))) + ".sig"
	for _, c := range []struct{ token, info, version, expires string }{
		{token, "", "client.authentication.k8s.io/v1", "2026-01-02T03:04:05Z"},
		{token + "\n", `{"apiVersion":"client.authentication.k8s.io/v1beta1","kind":"ExecCredential"}`, "client.authentication.k8s.io/v1beta1", "2026-01-02T03:04:05Z"},
		{"opaque", "", "client.authentication.k8s.io/v1", ""},
		{"a.!.c", "", "client.authentication.k8s.io/v1", ""},
	} {
		if err := os.WriteFile(file, []byte(c.token), 0o600); err != nil {
			t.Fatal(err)
		}
		var out strings.Builder
		if err := (&app{Config: Config{Out: &out}}).credential(file, c.info); err != nil {
			t.Fatal(err)
		}
		var got struct {
			APIVersion, Kind string
			Status           struct{ Token, ExpirationTimestamp string }
		}
		if err := json.Unmarshal([]byte(out.String()), &got); err != nil || got.APIVersion != c.version || got.Kind != "ExecCredential" ||
			got.Status.Token != strings.TrimSpace(c.token) || got.Status.ExpirationTimestamp != c.expires {
			t.Errorf("%v\n%s", err, &out)
		}
	}
	a := &app{}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for want, err := range map[string]error{
		"the file is empty":         a.credential(file, ""),
		"no such file":              a.credential(file+"x", ""),
		"invalid KUBERNETES_EXEC_I": a.credential(file, "{"),
		`the version "v9" is not`:   a.credential(file, `{"apiVersion":"v9"}`),
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}
