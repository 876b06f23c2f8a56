// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"bytes"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/oam-dev/cluster-gateway/pkg/client"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

// reaching is how the commands reach a server: by a kubeconfig itself, and through the gateway of
// the hub that the kubeconfig describes.
type reaching struct {
	direct  *clusterClient
	through *rest.Config
}

// kubeconfigCase sets fields of a kubeconfig, and checks that the commands follow them.
type kubeconfigCase struct {
	set   func(cluster *clientcmdapi.Cluster, user *clientcmdapi.AuthInfo)
	check func(c *rest.Config) bool
}

// TestKubeconfigFields checks that every field of a kubeconfig about reaching a server, and about
// who reaches it, survives the way through the commands. A field that client-go adds fails the test
// until it has a case.
func TestKubeconfigFields(t *testing.T) {
	t.Parallel()
	server := httptest.NewTLSServer(http.NotFoundHandler())
	defer server.Close()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	cluster := map[string]kubeconfigCase{
		"LocationOfOrigin": {}, // the file that it was read from
		"Server":           {func(c *clientcmdapi.Cluster, _ *clientcmdapi.AuthInfo) { c.Server = "https://b.example.com/prefix" }, func(c *rest.Config) bool { return strings.HasPrefix(c.Host, "https://b.example.com/prefix") }},
		"TLSServerName": {
			func(c *clientcmdapi.Cluster, _ *clientcmdapi.AuthInfo) { c.TLSServerName = "b" },
			func(c *rest.Config) bool { return c.ServerName == "b" },
		},
		"InsecureSkipTLSVerify": {
			func(c *clientcmdapi.Cluster, _ *clientcmdapi.AuthInfo) { c.InsecureSkipTLSVerify = true },
			func(c *rest.Config) bool { return c.Insecure },
		},
		"CertificateAuthority": { // relative to the kubeconfig
			func(c *clientcmdapi.Cluster, _ *clientcmdapi.AuthInfo) { c.CertificateAuthority = "ca.crt" },
			func(c *rest.Config) bool {
				loaded := rest.CopyConfig(c)
				return rest.LoadTLSFiles(loaded) == nil && bytes.Equal(loaded.CAData, ca)
			},
		},
		"CertificateAuthorityData": {
			func(c *clientcmdapi.Cluster, _ *clientcmdapi.AuthInfo) { c.CertificateAuthorityData = ca },
			func(c *rest.Config) bool { return bytes.Equal(c.CAData, ca) },
		},
		"ProxyURL": {
			func(c *clientcmdapi.Cluster, _ *clientcmdapi.AuthInfo) { c.ProxyURL = "socks5://c:1080" },
			func(c *rest.Config) bool {
				via, err := c.Proxy(&http.Request{})
				return err == nil && via.String() == "socks5://c:1080"
			},
		},
		"DisableCompression": {
			func(c *clientcmdapi.Cluster, _ *clientcmdapi.AuthInfo) { c.DisableCompression = true },
			func(c *rest.Config) bool { return c.DisableCompression },
		},
		"Extensions": { // those of an exec plugin are given to it
			func(c *clientcmdapi.Cluster, u *clientcmdapi.AuthInfo) {
				c.Extensions = map[string]runtime.Object{"client.authentication.k8s.io/exec": &runtime.Unknown{Raw: []byte(`{"d":"e"}`), ContentType: "application/json"}}
				u.Exec = &clientcmdapi.ExecConfig{Command: "f", APIVersion: "client.authentication.k8s.io/v1", InteractiveMode: clientcmdapi.NeverExecInteractiveMode}
			},
			func(c *rest.Config) bool {
				raw, ok := c.ExecProvider.Config.(*runtime.Unknown)
				return ok && string(raw.Raw) == `{"d":"e"}`
			},
		},
	}
	user := map[string]kubeconfigCase{
		"LocationOfOrigin": {}, "Extensions": {}, // nothing reads these
		"ClientCertificate": {
			func(_ *clientcmdapi.Cluster, u *clientcmdapi.AuthInfo) {
				u.ClientCertificate, u.ClientKey = "ca.crt", "ca.crt"
			},
			func(c *rest.Config) bool { return filepath.IsAbs(c.CertFile) },
		},
		"ClientKey": {
			func(_ *clientcmdapi.Cluster, u *clientcmdapi.AuthInfo) {
				u.ClientCertificate, u.ClientKey = "ca.crt", "ca.crt"
			},
			func(c *rest.Config) bool { return filepath.IsAbs(c.KeyFile) },
		},
		"ClientCertificateData": {
			func(_ *clientcmdapi.Cluster, u *clientcmdapi.AuthInfo) {
				u.ClientCertificateData, u.ClientKeyData = []byte("g"), []byte("h")
			},
			func(c *rest.Config) bool { return string(c.CertData) == "g" },
		},
		"ClientKeyData": {
			func(_ *clientcmdapi.Cluster, u *clientcmdapi.AuthInfo) {
				u.ClientCertificateData, u.ClientKeyData = []byte("g"), []byte("h")
			},
			func(c *rest.Config) bool { return string(c.KeyData) == "h" },
		},
		"Token": {
			func(_ *clientcmdapi.Cluster, u *clientcmdapi.AuthInfo) { u.Token = "i" },
			func(c *rest.Config) bool { return c.BearerToken == "i" },
		},
		"TokenFile": {
			func(_ *clientcmdapi.Cluster, u *clientcmdapi.AuthInfo) { u.TokenFile = "ca.crt" },
			func(c *rest.Config) bool { return filepath.IsAbs(c.BearerTokenFile) },
		},
		"Username": {
			func(_ *clientcmdapi.Cluster, u *clientcmdapi.AuthInfo) { u.Username = "j" },
			func(c *rest.Config) bool { return c.Username == "j" },
		},
		"Password": {
			func(_ *clientcmdapi.Cluster, u *clientcmdapi.AuthInfo) { u.Username, u.Password = "j", "k" },
			func(c *rest.Config) bool { return c.Password == "k" },
		},
		"Impersonate": {
			func(_ *clientcmdapi.Cluster, u *clientcmdapi.AuthInfo) { u.Impersonate = "l" },
			func(c *rest.Config) bool { return c.Impersonate.UserName == "l" },
		},
		"ImpersonateUID": {
			func(_ *clientcmdapi.Cluster, u *clientcmdapi.AuthInfo) { u.Impersonate, u.ImpersonateUID = "l", "m" },
			func(c *rest.Config) bool { return c.Impersonate.UID == "m" },
		},
		"ImpersonateGroups": {
			func(_ *clientcmdapi.Cluster, u *clientcmdapi.AuthInfo) {
				u.Impersonate, u.ImpersonateGroups = "l", []string{"n"}
			},
			func(c *rest.Config) bool { return reflect.DeepEqual(c.Impersonate.Groups, []string{"n"}) },
		},
		"ImpersonateUserExtra": {
			func(_ *clientcmdapi.Cluster, u *clientcmdapi.AuthInfo) {
				u.Impersonate, u.ImpersonateUserExtra = "l", map[string][]string{"o": {"p"}}
			},
			func(c *rest.Config) bool {
				return reflect.DeepEqual(c.Impersonate.Extra, map[string][]string{"o": {"p"}})
			},
		},
		"AuthProvider": {nil, nil}, // client-go has none any more but OIDC, which has a server of its own
		"Exec": {
			func(_ *clientcmdapi.Cluster, u *clientcmdapi.AuthInfo) {
				u.Exec = &clientcmdapi.ExecConfig{
					Command: "./plugin", Args: []string{"q"}, Env: []clientcmdapi.ExecEnvVar{{Name: "r", Value: "s"}}, APIVersion: "client.authentication.k8s.io/v1",
					InstallHint: "t", ProvideClusterInfo: true, InteractiveMode: clientcmdapi.NeverExecInteractiveMode,
				}
			},
			func(c *rest.Config) bool {
				e := c.ExecProvider
				return e != nil && filepath.IsAbs(e.Command) && len(e.Args) == 1 && e.Env[0].Value == "s" && e.ProvideClusterInfo && e.InteractiveMode == clientcmdapi.NeverExecInteractiveMode
			},
		},
	}
	for name, cases := range map[reflect.Type]map[string]kubeconfigCase{reflect.TypeFor[clientcmdapi.Cluster](): cluster, reflect.TypeFor[clientcmdapi.AuthInfo](): user} {
		for i := range name.NumField() {
			field := name.Field(i).Name
			c, known := cases[field]
			if !known {
				t.Errorf("%s.%s has no case", name.Name(), field)
			}
			if c.check == nil {
				continue
			}
			t.Run(name.Name()+"."+field, func(t *testing.T) {
				got := reach(t, c, ca)
				if !c.check(got.direct.config) {
					t.Error("the command that reaches the server does not have it")
				}
				if !c.check(got.through) {
					t.Error("the command that reaches a cluster through the gateway does not have it")
				}
			})
		}
	}
}

// reach reads a kubeconfig with the fields of a case, as the commands do.
func reach(t *testing.T, c kubeconfigCase, ca []byte) reaching {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string][]byte{"ca.crt": ca, "plugin": nil} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	config := clientcmdapi.NewConfig()
	config.Clusters["a"] = &clientcmdapi.Cluster{Server: "https://a.example.com"}
	config.AuthInfos["a"] = &clientcmdapi.AuthInfo{}
	config.Contexts["a"] = &clientcmdapi.Context{Cluster: "a", AuthInfo: "a"}
	config.CurrentContext = "a"
	c.set(config.Clusters["a"], config.AuthInfos["a"])
	file := filepath.Join(dir, "kubeconfig")
	if err := clientcmd.WriteToFile(*config, file); err != nil {
		t.Fatal(err)
	}
	loaded, raw, err := loadKubeconfig("--kubeconfig", file, "")
	if err != nil {
		t.Fatal(err)
	}
	direct, err := newClusterClient("a", "--kubeconfig", loaded, raw)
	if err != nil { // not a certificate
		direct = &clusterClient{config: loaded, raw: raw}
	}
	through, err := client.ForCluster(direct.config, "edge")
	if err != nil {
		t.Fatal(err)
	}
	return reaching{direct, through}
}

// TestServerInfo checks what register takes from a kubeconfig.
func TestServerInfo(t *testing.T) {
	t.Parallel()
	ca := []byte("-----BEGIN CERTIFICATE-----")
	got, err := reach(t, kubeconfigCase{set: func(c *clientcmdapi.Cluster, _ *clientcmdapi.AuthInfo) {
		c.Server, c.TLSServerName, c.ProxyURL, c.CertificateAuthority = "https://a.example.com:6443/prefix/", "b", "socks5://c:1080", "ca.crt"
	}}, ca).direct.serverInfo()
	want := registration.ServerInfo{URL: "https://a.example.com:6443/prefix", ServerName: "b", ProxyURL: "socks5://c:1080", CA: ca}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
}
