// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

func TestFingerprintChangesWithWhatATransportDependsOn(t *testing.T) {
	ca, other := newAuthority(t, "ca"), newAuthority(t, "other")
	key := newKey(t)
	client, renewed := ca.issue(t, key, "admin"), ca.issue(t, key, "renewed")
	dir := t.TempDir()
	plugin := filepath.Join(dir, "plugin")
	if err := os.WriteFile(plugin, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	opts := ParseOptions{ExecCredentialDir: dir, ExecPlugins: pluginsOf(t, plugin, "--cluster")}
	exec := `{"apiVersion":"client.authentication.k8s.io/v1","command":"` + plugin + `","args":["1"]}`
	defined := `{"plugin":"aws","parameters":{"cluster":"prod"}}`

	bases := map[string]func() *corev1.Secret{
		"token": func() *corev1.Secret { return tokenSecret(data{"ca.crt": string(ca.pem)}) },
		"x509": func() *corev1.Secret {
			return secretOf(x509Type, "", data{"endpoint": "https://h", "ca.crt": string(ca.pem), "tls.crt": string(client.cert), "tls.key": string(client.key)})
		},
		"exec": func() *corev1.Secret { return secretOf(dynamicType, "", data{"endpoint": "https://h", "exec": exec}) },
		"defined": func() *corev1.Secret {
			return secretOf(dynamicType, "", data{"endpoint": "https://h", "exec": defined})
		},
	}
	set := func(key, value string) func(*corev1.Secret) {
		return func(s *corev1.Secret) { s.Data[key] = []byte(value) }
	}
	for _, test := range []struct {
		name, base string
		change     func(*corev1.Secret)
		same       bool
	}{
		{"name", "token", func(s *corev1.Secret) { s.Name = "west" }, false},
		{"UID", "token", func(s *corev1.Secret) { s.UID = "other" }, false},
		{"route", "token", func(s *corev1.Secret) { s.Labels[v1alpha1.LabelEndpointType] = "ClusterProxy" }, false},
		{"credential type", "token", func(s *corev1.Secret) {
			s.Labels[v1alpha1.LabelCredentialType] = "X509"
			s.Data["tls.crt"], s.Data["tls.key"] = client.cert, client.key
		}, false},
		{"insecure", "token", func(s *corev1.Secret) {
			s.Annotations = map[string]string{v1alpha1.AnnotationInsecureSkipTLSVerify: "true"}
		}, false},
		{"endpoint", "token", set("endpoint", "https://10.0.0.2:6443"), false},
		{"path prefix", "token", set("endpoint", "https://10.0.0.1:6443/a"), false},
		{"CA", "token", set("ca.crt", string(other.pem)), false},
		{"one CA more", "token", set("ca.crt", string(ca.pem)+string(other.pem)), false},
		{"no CA", "token", set("ca.crt", ""), false},
		{"server name", "token", set("tls-server-name", "kubernetes"), false},
		{"proxy", "token", set("proxy-url", "http://proxy"), false},
		{"token", "token", set("token", "another"), false},
		{"invalid now", "token", set("token", ""), false},
		{"renewed certificate of the same key", "x509", set("tls.crt", string(renewed.cert)), false},
		{"certificate chain", "x509", set("tls.crt", string(client.cert)+string(ca.pem)), false},
		{"arguments of the plugin", "exec", set("exec", strings.Replace(exec, `"1"`, `"2"`, 1)), false},
		{"parameter of the plugin", "defined", set("exec", strings.Replace(defined, "prod", "test", 1)), false},

		{"resource version", "token", func(s *corev1.Secret) { s.ResourceVersion = "42" }, true},
		{"namespace-independent labels", "token", func(s *corev1.Secret) { s.Labels["team"] = "a" }, true},
		{"health", "token", func(s *corev1.Secret) {
			s.Annotations = map[string]string{v1alpha1.AnnotationHealthy: "false", v1alpha1.AnnotationLatency: "1s"}
		}, true},
		{"insecure: false", "token", func(s *corev1.Secret) {
			s.Annotations = map[string]string{v1alpha1.AnnotationInsecureSkipTLSVerify: "false"}
		}, true},
		{"endpoint type that is the default", "token", func(s *corev1.Secret) { s.Labels[v1alpha1.LabelEndpointType] = "Const" }, true},
		{"white space", "token", func(s *corev1.Secret) {
			s.Data["endpoint"] = []byte("https://10.0.0.1:6443/\n")
			s.Data["ca.crt"] = append([]byte("# comment\n"), s.Data["ca.crt"]...)
			s.Data["token"] = append(s.Data["token"], '\n')
		}, true},
		{"the other name of the CA", "token", func(s *corev1.Secret) { s.Data["ca"], s.Data["ca.crt"] = s.Data["ca.crt"], nil }, true},
		{"server name that is the default", "token", set("tls-server-name", "10.0.0.1"), true},
		{"key of another credential", "token", set("tls.key", "x"), true},
		{"alias of the credential type", "x509", func(s *corev1.Secret) { s.Labels[v1alpha1.LabelCredentialType] = "X509" }, true},
		{"default of a parameter", "defined", set("exec", `{"plugin":"aws","parameters":{"cluster":"prod","region":"eu"}}`), true},
		{"white space in the plugin's JSON", "exec", set("exec", strings.Replace(exec, ",", ", ", 1)), true},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := bases[test.base]()
			after := bases[test.base]()
			test.change(after)
			a, b := Parse(before, opts), Parse(after, opts)
			if err := a.Err(); err != nil {
				t.Fatal(err)
			}
			if test.name != "invalid now" && b.Err() != nil {
				t.Fatal(b.Err())
			}
			if (a.Fingerprint() == b.Fingerprint()) != test.same {
				t.Errorf("%v and %v", a.Fingerprint(), b.Fingerprint())
			}
			if again := Parse(before, opts).Fingerprint(); again != a.Fingerprint() {
				t.Errorf("parsed twice: %v and %v", a.Fingerprint(), again)
			}
		})
	}
}

// Another definition of the plugin makes another transport, though the Secret is the same.
func TestFingerprintChangesWithTheDefinitionOfThePlugin(t *testing.T) {
	plugin := filepath.Join(t.TempDir(), "plugin")
	if err := os.WriteFile(plugin, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	secret := secretOf(dynamicType, "", data{"endpoint": "https://h", "exec": `{"plugin":"aws","parameters":{"cluster":"prod"}}`})
	a, b := Parse(secret, ParseOptions{ExecPlugins: pluginsOf(t, plugin, "--cluster")}), Parse(secret, ParseOptions{ExecPlugins: pluginsOf(t, plugin, "--id")})
	if a.Err() != nil || b.Err() != nil || a.Fingerprint() == b.Fingerprint() {
		t.Errorf("%v, %v; %v, %v", a.Fingerprint(), b.Fingerprint(), a.Err(), b.Err())
	}
}

// An attempt at repair that leaves the message as it was must still be seen.
func TestFingerprintOfInvalidSecrets(t *testing.T) {
	a := Parse(tokenSecret(data{"ca.crt": "garbage"}), ParseOptions{})
	b := Parse(tokenSecret(data{"ca.crt": "other garbage"}), ParseOptions{})
	if a.Message() != b.Message() || a.Fingerprint() == b.Fingerprint() {
		t.Errorf("%q and %q: %v and %v", a.Message(), b.Message(), a.Fingerprint(), b.Fingerprint())
	}
}
