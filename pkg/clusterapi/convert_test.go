// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package clusterapi

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// kubeconfigOf returns a kubeconfig as Cluster API writes it, after a change.
func kubeconfigOf(t *testing.T, change func(server *clientcmdapi.Cluster, user *clientcmdapi.AuthInfo)) []byte {
	t.Helper()
	config := clientcmdapi.NewConfig()
	server := &clientcmdapi.Cluster{Server: "https://edge-1.example.com:6443", CertificateAuthorityData: []byte("the CA")}
	user := &clientcmdapi.AuthInfo{ClientCertificateData: []byte("the certificate"), ClientKeyData: []byte("the key")}
	if change != nil {
		change(server, user)
	}
	config.Clusters["edge-1"], config.AuthInfos["edge-1-admin"] = server, user
	config.Contexts["edge-1-admin@edge-1"] = &clientcmdapi.Context{Cluster: "edge-1", AuthInfo: "edge-1-admin"}
	config.CurrentContext = "edge-1-admin@edge-1"
	data, err := clientcmd.Write(*config)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// kubeconfigSecret returns a Secret as Cluster API writes it.
func kubeconfigSecret(namespace, name string, kubeconfig []byte) *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name + "-kubeconfig", Labels: map[string]string{"cluster.x-k8s.io/cluster-name": name}},
		Type:       "cluster.x-k8s.io/secret",
		Data:       map[string][]byte{"value": kubeconfig},
	}
}

func TestConvert(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change     func(*clientcmdapi.Cluster, *clientcmdapi.AuthInfo)
		credential v1alpha1.CredentialType
		data       map[string]string
	}{
		"certificate": {nil, v1alpha1.CredentialTypeX509, map[string]string{
			"endpoint": "https://edge-1.example.com:6443", "ca.crt": "the CA", "tls.crt": "the certificate", "tls.key": "the key",
		}},
		"token": {func(s *clientcmdapi.Cluster, u *clientcmdapi.AuthInfo) {
			s.TLSServerName, s.ProxyURL = "a", "socks5://b:1080"
			*u = clientcmdapi.AuthInfo{Token: "the token"}
		}, v1alpha1.CredentialTypeServiceAccountToken, map[string]string{
			"endpoint": "https://edge-1.example.com:6443", "ca.crt": "the CA", "token": "the token", "tls-server-name": "a", "proxy-url": "socks5://b:1080",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := Convert(kubeconfigSecret("prod", "edge-1", kubeconfigOf(t, c.change)), "system")
			if err != nil {
				t.Fatal(err)
			}
			want := &corev1.Secret{
				ObjectMeta: metav1.ObjectMeta{Namespace: "system", Name: "edge-1", Labels: map[string]string{
					"app.kubernetes.io/managed-by": "cluster-api", v1alpha1.LabelCredentialType: string(c.credential), v1alpha1.LabelEndpointType: "Const",
				}, Annotations: map[string]string{"cluster.core.oam.dev/cluster-api-secret": "prod/edge-1-kubeconfig"}},
				Type: corev1.SecretTypeOpaque, Data: map[string][]byte{},
			}
			for key, value := range c.data {
				want.Data[key] = []byte(value)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestConvertRefuses shows what is not registered. No error has a credential.
func TestConvertRefuses(t *testing.T) {
	t.Parallel()
	for want, change := range map[string]func(*clientcmdapi.Cluster, *clientcmdapi.AuthInfo){
		"insecure-skip-tls-verify is not allowed": func(s *clientcmdapi.Cluster, _ *clientcmdapi.AuthInfo) { s.InsecureSkipTLSVerify = true },
		"certificate-authority names a file": func(s *clientcmdapi.Cluster, _ *clientcmdapi.AuthInfo) {
			s.CertificateAuthority = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"
		},
		"certificate-authority-data is missing": func(s *clientcmdapi.Cluster, _ *clientcmdapi.AuthInfo) { s.CertificateAuthorityData = nil },
		"exec of the user is not allowed": func(_ *clientcmdapi.Cluster, u *clientcmdapi.AuthInfo) {
			u.Exec = &clientcmdapi.ExecConfig{Command: "sh", APIVersion: "client.authentication.k8s.io/v1"}
		},
		"auth-provider of the user is not allowed": func(_ *clientcmdapi.Cluster, u *clientcmdapi.AuthInfo) {
			u.AuthProvider = &clientcmdapi.AuthProviderConfig{Name: "a"}
		},
		"tokenFile of the user is not allowed":                     func(_ *clientcmdapi.Cluster, u *clientcmdapi.AuthInfo) { u.TokenFile = "/token" },
		"client-certificate of the user is not allowed":            func(_ *clientcmdapi.Cluster, u *clientcmdapi.AuthInfo) { u.ClientCertificate = "/tls.crt" },
		"client-key of the user is not allowed":                    func(_ *clientcmdapi.Cluster, u *clientcmdapi.AuthInfo) { u.ClientKey = "/tls.key" },
		"username and password of the user is not allowed":         func(_ *clientcmdapi.Cluster, u *clientcmdapi.AuthInfo) { u.Password = "the key" },
		"as of the user is not allowed":                            func(_ *clientcmdapi.Cluster, u *clientcmdapi.AuthInfo) { u.Impersonate = "jane" },
		"the user has neither a token nor client-certificate-data": func(_ *clientcmdapi.Cluster, u *clientcmdapi.AuthInfo) { u.ClientCertificateData = nil },
	} {
		got, err := Convert(kubeconfigSecret("prod", "edge-1", kubeconfigOf(t, change)), "system")
		if got != nil || err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "the key") {
			t.Errorf("got %v, %v, want %s", got, err, want)
		}
	}
	for _, c := range []struct {
		want   string
		change func(*corev1.Secret)
	}{
		{`the key "value" is not a kubeconfig`, func(s *corev1.Secret) { s.Data["value"] = []byte("users:\n- user: {token: c4nary\n") }},
		{"the kubeconfig has no current context with a cluster", func(s *corev1.Secret) { s.Data = nil }},
		{"it is not a kubeconfig of Cluster API", func(s *corev1.Secret) { s.Type = corev1.SecretTypeOpaque }},
		{"it is not a kubeconfig of Cluster API", func(s *corev1.Secret) { s.Labels[labelClusterName] = "edge-2" }},
	} {
		secret := kubeconfigSecret("prod", "edge-1", kubeconfigOf(t, nil))
		c.change(secret)
		if got, err := Convert(secret, "system"); got != nil || err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "c4nary") {
			t.Errorf("got %v, %v, want %s", got, err, c.want)
		}
	}
}

// TestConvertRefusesInOneOrder: a text that changes would be a new Event each time.
func TestConvertRefusesInOneOrder(t *testing.T) {
	t.Parallel()
	secret := kubeconfigSecret("prod", "edge-1", kubeconfigOf(t, func(_ *clientcmdapi.Cluster, u *clientcmdapi.AuthInfo) {
		u.Exec = &clientcmdapi.ExecConfig{Command: "sh", APIVersion: "client.authentication.k8s.io/v1"}
		u.TokenFile, u.ClientCertificate, u.ClientKey, u.Impersonate = "/token", "/tls.crt", "/tls.key", "jane"
	}))
	_, first := Convert(secret, "system")
	for range 20 {
		if _, err := Convert(secret, "system"); err == nil || first == nil || err.Error() != first.Error() {
			t.Fatalf("the error was %v, and is %v", first, err)
		}
	}
}
