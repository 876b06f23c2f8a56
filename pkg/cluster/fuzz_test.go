// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// FuzzParse puts anything at all into a Secret. Whatever it is, Parse must not panic, must give the
// same answer twice, must call a cluster valid only when it can be used, and nothing that is
// served, printed or reported may hold a secret.
func FuzzParse(f *testing.F) {
	ca := newAuthority(f, "ca")
	client := ca.issue(f, newKey(f), "admin")
	dir := f.TempDir()
	exec := []byte(`{"apiVersion":"client.authentication.k8s.io/v1","command":"` + filepath.Join(dir, "absent") + `","args":["secret-argument"]}`)
	program := filepath.Join(dir, "program")
	if err := os.WriteFile(program, nil, 0o755); err != nil {
		f.Fatal(err)
	}
	plugins := pluginsOf(f, program, "--cluster")
	type seed struct {
		credential, endpointType, endpoint, serverName, proxy string
		ca, cert, key, token, exec                            []byte
		annotation, value                                     string
		mode                                                  uint8
	}
	for _, s := range []seed{
		{credential: "X509Certificate", endpoint: "https://10.0.0.1:6443", ca: ca.pem, cert: client.cert, key: client.key},
		{credential: "X509", endpointType: "ClusterProxy", ca: ca.pem, cert: join(client.cert, ca.pem), key: client.key, mode: 1},
		{credential: "ServiceAccountToken", endpointType: "Const", endpoint: "https://[::1]/a%2Fb/", token: []byte(jwt(`{"exp":1893456000}`)), proxy: "http://user:pass@proxy:3128"},
		{credential: "ServiceAccountToken", endpoint: "https://h/a%2F/", token: []byte("t")}, // an escaped slash is part of the name
		{credential: "Dynamic", endpoint: "https://h", exec: exec},
		{credential: "Dynamic", endpoint: "https://h", exec: []byte(`{"plugin":"aws","parameters":{"cluster":"secret-cluster"}}`)},
		{credential: "ServiceAccountToken", endpointType: "ClusterProxy", token: []byte("secret token"), mode: 2},
		{credential: "", endpointType: "?", endpoint: "http://user:pass@h?q#f", serverName: "-", proxy: "socks5://[", ca: ca.pem[:40], cert: client.key, key: client.cert},
		{credential: "ServiceAccountToken", endpoint: "https://h", token: []byte("secret-secret-secret"), annotation: v1alpha1.AnnotationInsecureSkipTLSVerify, value: "true"},
		{credential: "ServiceAccountToken", endpoint: "https://h", token: []byte("t"), annotation: v1alpha1.AnnotationLastProbeTime, value: "9999-12-31T23:59:59-12:00"},
		{credential: "ServiceAccountToken", endpoint: "https://h", token: []byte("t"), annotation: corev1.LastAppliedConfigAnnotation, value: `{"data":{}}`},
		{credential: "ServiceAccountToken", endpoint: "https://h", ca: join(ca.pem, client.key), token: []byte("t"), serverName: "10.0.0.1"},
	} {
		f.Add(s.credential, s.endpointType, s.endpoint, s.serverName, s.proxy, s.ca, s.cert, s.key, s.token, s.exec, s.annotation, s.value, s.mode)
	}
	f.Fuzz(func(t *testing.T, credential, endpointType, endpoint, serverName, proxy string, ca, cert, key, token, exec []byte, annotation, value string, mode uint8) {
		secret := &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: "clusters", Name: "east", UID: "u", ResourceVersion: "1",
				Labels:      map[string]string{v1alpha1.LabelCredentialType: credential, v1alpha1.LabelEndpointType: endpointType},
				Annotations: map[string]string{annotation: value},
			},
			Data: map[string][]byte{
				"endpoint": []byte(endpoint), "tls-server-name": []byte(serverName), "proxy-url": []byte(proxy), "ca.crt": ca,
				"tls.crt": cert, "tls.key": key, "token": token, "exec": exec,
			},
		}
		if endpointType == "" {
			delete(secret.Labels, v1alpha1.LabelEndpointType)
		}
		opts := ParseOptions{
			TunnelMode:        []TunnelMode{TunnelEmbedded, TunnelExternal, TunnelOff, ""}[mode%4],
			ExecCredentialDir: dir,
			ExecPlugins:       plugins,
		}
		before := secret.DeepCopy()
		c := Parse(secret, opts)
		if !reflect.DeepEqual(secret, before) {
			t.Fatal("Parse changed the Secret")
		}
		if again := Parse(secret, opts); again.Fingerprint() != c.Fingerprint() || again.Message() != c.Message() {
			t.Fatalf("parsed twice: %v and %v", c, again)
		}
		if len(c.Message()) > 4096 {
			t.Fatalf("a message of %d bytes", len(c.Message()))
		}
		checkUsable(t, c)
		checkHidden(t, secret, opts)
	})
}

// checkUsable checks that what is valid can be used, and that what is not gives no TLS
// configuration.
func checkUsable(t *testing.T, c *Cluster) {
	config, err := c.TLSConfig()
	if c.Err() != nil {
		if err == nil || config != nil {
			t.Fatalf("a TLS configuration of an invalid cluster: %v", c.Err())
		}
		return
	}
	if err != nil {
		t.Fatalf("no TLS configuration of a valid cluster: %v", err)
	}
	if config.ServerName == "" || config.InsecureSkipVerify != c.Insecure {
		t.Fatalf("TLS: %+v", config)
	}
	if c.Route != RouteDirect && c.Route != RouteTunnel {
		t.Fatalf("route %q", c.Route)
	}
	if c.Route == RouteTunnel && config.RootCAs == nil && !c.Insecure {
		t.Fatal("a tunnel is verified with the system's roots")
	}
	if c.Endpoint.Scheme != "https" || c.Endpoint.Port() == "" || c.Endpoint.User != nil || strings.HasSuffix(c.Endpoint.EscapedPath(), "/") {
		t.Fatalf("endpoint %q", c.Endpoint)
	}
	if again, err := url.Parse(c.Endpoint.String()); err != nil || again.Host != c.Endpoint.Host {
		t.Fatalf("endpoint %q: %v", c.Endpoint, err)
	}
	switch c.Credential.Type {
	case x509Type:
		if len(config.Certificates) != 1 {
			t.Fatal("no certificate")
		}
	case tokenType:
		if token := c.Credential.BearerToken(); token == "" || strings.ContainsAny(token, " \t\r\n\x00") {
			t.Fatal("no token")
		}
	case dynamicType:
		if c.Credential.Plugin() == nil {
			t.Fatal("no plugin")
		}
	default:
		t.Fatalf("credential %q", c.Credential.Type)
	}
}

// checkHidden looks for each secret, raw and in base64, in everything that leaves the package. It
// ignores a secret that is also in a public key, or that is too short to be distinguished from
// other text.
func checkHidden(t *testing.T, secret *corev1.Secret, opts ParseOptions) {
	c := Parse(secret, opts)
	served, err := json.Marshal(c.ClusterGateway(secret))
	if err != nil {
		t.Fatalf("cannot be served: %v", err)
	}
	var back v1alpha1.ClusterGateway
	if err := json.Unmarshal(served, &back); err != nil {
		t.Fatalf("what is served cannot be read: %v in %s", err, served)
	}
	shown := string(served) + fmt.Sprintf("%v %+v %#v %v %+v", c, *c, c, c.Credential, c.Err())
	hidden := map[string][]byte{"token": secret.Data["token"], "tls.key": secret.Data["tls.key"], "exec": secret.Data["exec"]}
	if u, err := url.Parse(strings.TrimSpace(string(secret.Data["proxy-url"]))); err == nil && u.User != nil {
		password, _ := u.User.Password()
		hidden["proxy-url"] = []byte(password)
	}
	// What is shown of an empty Secret of the same public keys is known to be public.
	bare := secret.DeepCopy()
	for _, key := range []string{"token", "tls.key", "exec", "proxy-url"} {
		delete(bare.Data, key)
	}
	other := Parse(bare, opts)
	public, err := json.Marshal(other.ClusterGateway(bare))
	if err != nil {
		t.Fatal(err)
	}
	public = fmt.Appendf(public, "%v %+v %v %v %s", other, other.Err(), bare.Data, bare.Labels, secret.Data["ca.crt"])
	for key, value := range hidden {
		value = bytes.TrimSpace(value)
		if len(value) < minGuarded {
			continue
		}
		for _, form := range []string{string(value), base64.StdEncoding.EncodeToString(value)} {
			if strings.Contains(shown, form) && !bytes.Contains(public, []byte(form)) && !bytes.Contains(secret.Data["tls.crt"], value) {
				t.Fatalf("%s is shown", key)
			}
		}
	}
}
