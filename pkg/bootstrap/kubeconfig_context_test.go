// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/pki"
)

// field is a field of a kubeconfig in a test: set writes it in the hub's kubeconfig, and want
// changes what is expected of the cluster's kubeconfig, which is otherwise the same.
type field struct {
	set, want func(c *clientcmdapi.Cluster, u *clientcmdapi.AuthInfo)
}

const neverWritten = "client-go does not write this field to files"

// TestContextCarriesEveryField shows that a cluster's kubeconfig has everything that the hub's says
// about reaching a server. It fails if client-go gets a field that the table does not have.
func TestContextCarriesEveryField(t *testing.T) {
	t.Parallel()
	certificate, key := testPair(t)
	dir := t.TempDir()
	for name, data := range map[string][]byte{"ca.crt": certificate, "me.crt": certificate, "me.key": key, "token": []byte("from-file"), "plugin": nil} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	extension := map[string]runtime.Object{"client.authentication.k8s.io/exec": &runtime.Unknown{Raw: []byte(`{"audience":"a"}`), ContentType: runtime.ContentTypeJSON}}
	exec := func(change func(e *clientcmdapi.ExecConfig)) func(*clientcmdapi.Cluster, *clientcmdapi.AuthInfo) {
		return func(_ *clientcmdapi.Cluster, u *clientcmdapi.AuthInfo) {
			if u.Exec == nil {
				u.Exec = &clientcmdapi.ExecConfig{APIVersion: "client.authentication.k8s.io/v1", Command: "plugin", InteractiveMode: clientcmdapi.IfAvailableExecInteractiveMode}
			}
			change(u.Exec)
		}
	}
	type (
		cluster = clientcmdapi.Cluster
		user    = clientcmdapi.AuthInfo
	)
	tables := []struct {
		of     reflect.Type
		fields map[string]any // a field, or why it needs no test
	}{
		{reflect.TypeFor[clientcmdapi.Cluster](), map[string]any{
			"LocationOfOrigin":      neverWritten,
			"Server":                field{set: func(c *cluster, _ *user) { c.Server = "https://hub:6443/prefix" }, want: func(c *cluster, _ *user) { c.Server = "https://hub:6443/prefix" + v1alpha1.ProxyPath("edge-1") }},
			"TLSServerName":         field{set: func(c *cluster, _ *user) { c.TLSServerName = "hub.internal" }},
			"InsecureSkipTLSVerify": field{set: func(c *cluster, _ *user) { c.InsecureSkipTLSVerify = true }},
			"CertificateAuthority": field{
				set:  func(c *cluster, _ *user) { c.CertificateAuthority = "ca.crt" },
				want: func(c *cluster, _ *user) { c.CertificateAuthority, c.CertificateAuthorityData = "", certificate },
			},
			"CertificateAuthorityData": field{set: func(c *cluster, _ *user) { c.CertificateAuthorityData = certificate }},
			"ProxyURL":                 field{set: func(c *cluster, _ *user) { c.ProxyURL = "socks5://bastion:1080" }},
			"DisableCompression":       field{set: func(c *cluster, _ *user) { c.DisableCompression = true }},
			"Extensions":               field{set: func(c *cluster, _ *user) { c.Extensions = extension }},
		}},
		{reflect.TypeFor[clientcmdapi.AuthInfo](), map[string]any{
			"LocationOfOrigin": neverWritten,
			"ClientCertificate": field{
				set: func(_ *cluster, u *user) { u.ClientCertificate, u.ClientKey = "me.crt", "me.key" },
				want: func(_ *cluster, u *user) {
					u.ClientCertificate, u.ClientCertificateData, u.ClientKey, u.ClientKeyData = "", certificate, "", key
				},
			},
			"ClientCertificateData": field{set: func(_ *cluster, u *user) { u.ClientCertificateData, u.ClientKeyData = certificate, key }},
			"ClientKey": field{
				set:  func(_ *cluster, u *user) { u.ClientCertificateData, u.ClientKey = certificate, "me.key" },
				want: func(_ *cluster, u *user) { u.ClientKey, u.ClientKeyData = "", key },
			},
			"ClientKeyData": field{set: func(_ *cluster, u *user) { u.ClientCertificateData, u.ClientKeyData = certificate, key }},
			"Token":         field{set: func(_ *cluster, u *user) { u.Token = "secret" }},
			"TokenFile": field{
				set:  func(_ *cluster, u *user) { u.Token, u.TokenFile = "older", "token" },
				want: func(_ *cluster, u *user) { u.TokenFile = filepath.Join(dir, "token") },
			},
			"Impersonate":       field{set: func(_ *cluster, u *user) { u.Impersonate = "jane" }},
			"ImpersonateUID":    field{set: func(_ *cluster, u *user) { u.Impersonate, u.ImpersonateUID = "jane", "1" }},
			"ImpersonateGroups": field{set: func(_ *cluster, u *user) { u.Impersonate, u.ImpersonateGroups = "jane", []string{"a", "b"} }},
			"ImpersonateUserExtra": field{set: func(_ *cluster, u *user) {
				u.Impersonate, u.ImpersonateUserExtra = "jane", map[string][]string{"k": {"v"}}
			}},
			"Username": field{set: func(_ *cluster, u *user) { u.Username, u.Password = "jane", "secret" }},
			"Password": field{set: func(_ *cluster, u *user) { u.Username, u.Password = "jane", "other" }},
			"AuthProvider": field{set: func(_ *cluster, u *user) {
				u.AuthProvider = &clientcmdapi.AuthProviderConfig{Name: "oidc", Config: map[string]string{"idp-issuer-url": "https://idp"}}
			}},
			"Exec":       field{set: exec(func(*clientcmdapi.ExecConfig) {})},
			"Extensions": field{set: func(_ *cluster, u *user) { u.Extensions = extension }},
		}},
		{reflect.TypeFor[clientcmdapi.AuthProviderConfig](), map[string]any{
			"Name":   "see AuthProvider",
			"Config": "see AuthProvider",
		}},
		{reflect.TypeFor[clientcmdapi.ExecConfig](), map[string]any{
			"Command": field{ // a path is relative to the kubeconfig's folder, and a name is looked up in PATH
				set:  exec(func(e *clientcmdapi.ExecConfig) { e.Command = "./plugin" }),
				want: exec(func(e *clientcmdapi.ExecConfig) { e.Command = filepath.Join(dir, "plugin") }),
			},
			"Args":                    field{set: exec(func(e *clientcmdapi.ExecConfig) { e.Args = []string{"--a", "b"} })},
			"Env":                     field{set: exec(func(e *clientcmdapi.ExecConfig) { e.Env = []clientcmdapi.ExecEnvVar{{Name: "A", Value: "b"}} })},
			"APIVersion":              field{set: exec(func(e *clientcmdapi.ExecConfig) { e.APIVersion = "client.authentication.k8s.io/v1beta1" })},
			"InstallHint":             field{set: exec(func(e *clientcmdapi.ExecConfig) { e.InstallHint = "brew install plugin" })},
			"ProvideClusterInfo":      field{set: exec(func(e *clientcmdapi.ExecConfig) { e.ProvideClusterInfo = true })},
			"InteractiveMode":         field{set: exec(func(e *clientcmdapi.ExecConfig) { e.InteractiveMode = clientcmdapi.NeverExecInteractiveMode })},
			"Config":                  "client-go reads it from the cluster's extensions",
			"StdinUnavailable":        neverWritten,
			"StdinUnavailableMessage": neverWritten,
			"PluginPolicy":            neverWritten,
		}},
	}
	for _, table := range tables {
		for i := range table.of.NumField() {
			name := table.of.Field(i).Name
			entry, known := table.fields[name]
			if !known {
				t.Errorf("client-go has a field %s.%s: make sure that kubeconfigs carry it, and add it here", table.of.Name(), name)
			}
			f, tested := entry.(field)
			if !tested {
				continue
			}
			t.Run(table.of.Name()+"."+name, func(t *testing.T) {
				hub := clientcmdapi.NewConfig()
				hub.Clusters["hub"] = &clientcmdapi.Cluster{Server: "https://hub:6443"}
				hub.AuthInfos["me"] = clientcmdapi.NewAuthInfo()
				hub.Contexts["hub"] = &clientcmdapi.Context{Cluster: "hub", AuthInfo: "me", Namespace: "elsewhere"}
				hub.CurrentContext = "hub"
				f.set(hub.Clusters["hub"], hub.AuthInfos["me"])
				path := filepath.Join(dir, t.Name()[len("TestContextCarriesEveryField/"):]+".kubeconfig")
				if err := clientcmd.WriteToFile(*hub, path); err != nil {
					t.Fatal(err)
				}
				wantCluster, wantUser := hub.Clusters["hub"].DeepCopy(), hub.AuthInfos["me"].DeepCopy()
				wantCluster.Server += v1alpha1.ProxyPath("edge-1")
				if f.want != nil {
					f.want(wantCluster, wantUser)
				}
				got, hubConfig := makeKubeconfig(t, path)
				if diff := cmp.Diff(entryText(t, kubeconfigEntry{cluster: wantCluster}), entryText(t, kubeconfigEntry{cluster: got.Clusters["edge-1"]})); diff != "" {
					t.Errorf("the cluster differs (-want +got):\n%s", diff)
				}
				if diff := cmp.Diff(entryText(t, kubeconfigEntry{user: wantUser}), entryText(t, kubeconfigEntry{user: got.AuthInfos["edge-1"]})); diff != "" {
					t.Errorf("the user differs (-want +got):\n%s", diff)
				}
				if namespace := got.Contexts["edge-1"].Namespace; namespace != "" {
					t.Errorf("the context has the namespace of the hub's: %q", namespace)
				}
				sameClient(t, hubConfig, got)
			})
		}
	}
}

// makeKubeconfig returns a cluster's kubeconfig, as it is read from a file in another folder, and
// the client configuration of the hub's.
func makeKubeconfig(t *testing.T, hub string) (*clientcmdapi.Config, *rest.Config) {
	t.Helper()
	config, raw, err := loadKubeconfig("--kubeconfig", hub, "")
	if err != nil {
		t.Fatal(err)
	}
	entries, err := newClusterEntries(config, raw, "edge-1", "edge-1")
	if err != nil {
		t.Fatal(err)
	}
	made := clientcmdapi.NewConfig()
	if _, err := entries.addTo(made, false); err != nil {
		t.Fatal(err)
	}
	text, err := clientcmd.Write(*made)
	if err != nil {
		t.Fatal(err)
	}
	made, err = clientcmd.Load(text)
	if err != nil {
		t.Fatal(err)
	}
	return made, config
}

// entryText is an entry as it is written, without the extension of agent-bootstrap.
func entryText(t *testing.T, e kubeconfigEntry) string {
	t.Helper()
	e = e.copy()
	delete(*e.extensions(), ownerExtension)
	text, err := e.encode()
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// sameClient shows that client-go makes the same client of both kubeconfigs, but for the address.
func sameClient(t *testing.T, hub *rest.Config, made *clientcmdapi.Config) {
	t.Helper()
	config, err := clientcmd.NewNonInteractiveClientConfig(*made, "edge-1", nil, nil).ClientConfig()
	if err != nil {
		t.Fatal(err)
	}
	hub = rest.CopyConfig(hub)
	hub.Host += v1alpha1.ProxyPath("edge-1")
	for _, c := range []*rest.Config{hub, config} {
		if err := rest.LoadTLSFiles(c); err != nil {
			t.Fatal(err)
		}
		c.CAFile, c.CertFile, c.KeyFile = "", "", ""
		c.AuthConfigPersister, c.Proxy = nil, nil // functions cannot be compared; proxy-url is compared above
		if c.ExecProvider != nil {
			c.ExecProvider.Config = nil // decoded text; the extensions are compared above
		}
	}
	if !reflect.DeepEqual(hub, config) {
		t.Errorf("client-go does not make the same client:\n%#v\nwant\n%#v", config, hub)
	}
}

func testAuthority(t *testing.T) *pki.Authority {
	t.Helper()
	authority, err := pki.NewAuthority(24 * time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return authority
}

// testPair returns a certificate that can stand for a CA and for a client, with its key.
func testPair(t *testing.T) (certificate, key []byte) {
	t.Helper()
	certificate, key, err := testAuthority(t).IssueAgent("edge-1", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return certificate, key
}
