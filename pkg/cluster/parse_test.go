// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/identity"
)

const (
	x509Type    = v1alpha1.CredentialTypeX509
	tokenType   = v1alpha1.CredentialTypeServiceAccountToken
	dynamicType = v1alpha1.CredentialTypeDynamic
	tunnel      = v1alpha1.EndpointTypeClusterProxy
)

func TestParseValid(t *testing.T) {
	ca := newAuthority(t, "ca")
	other := newAuthority(t, "other")
	client := ca.issue(t, newKey(t), "admin")

	for _, test := range []struct {
		name       string
		secret     *corev1.Secret
		opts       ParseOptions
		route      Route
		endpoint   string
		serverName string
		ca         []byte
		proxy      string
	}{{
		name:   "x509, direct by default",
		secret: secretOf(x509Type, "", data{"endpoint": "https://10.0.0.1:6443", "ca.crt": string(ca.pem), "tls.crt": string(client.cert), "tls.key": string(client.key)}),
		route:  RouteDirect, endpoint: "https://10.0.0.1:6443", serverName: "10.0.0.1", ca: ca.pem,
	}, {
		name:   "the alias of x509, the alias of the CA, an endpoint with a newline",
		secret: secretOf("X509", "Const", data{"endpoint": "https://api.example.com\n", "ca": string(ca.pem), "tls.crt": string(client.cert), "tls.key": string(client.key)}),
		route:  RouteDirect, endpoint: "https://api.example.com:443", serverName: "api.example.com", ca: ca.pem,
	}, {
		name:   "ca.crt wins over ca",
		secret: tokenSecret(data{"ca.crt": string(ca.pem), "ca": string(other.pem)}),
		route:  RouteDirect, endpoint: "https://10.0.0.1:6443", serverName: "10.0.0.1", ca: ca.pem,
	}, {
		name:   "an empty ca.crt does not",
		secret: tokenSecret(data{"ca.crt": "", "ca": string(other.pem)}),
		route:  RouteDirect, endpoint: "https://10.0.0.1:6443", serverName: "10.0.0.1", ca: other.pem,
	}, {
		name:   "no CA: the system's roots",
		secret: tokenSecret(nil),
		route:  RouteDirect, endpoint: "https://10.0.0.1:6443", serverName: "10.0.0.1",
	}, {
		name:   "a bundle with text around its blocks",
		secret: tokenSecret(data{"ca.crt": "# a comment\n" + string(ca.pem) + "\n\nanother\n" + string(other.pem)}),
		route:  RouteDirect, endpoint: "https://10.0.0.1:6443", serverName: "10.0.0.1", ca: join(ca.pem, other.pem),
	}, {
		name:   "a path prefix, escaped, and a server name",
		secret: tokenSecret(data{"endpoint": "https://rancher.example.com/k8s/clusters/c%2Fm/", "tls-server-name": "kubernetes\n"}),
		route:  RouteDirect, endpoint: "https://rancher.example.com:443/k8s/clusters/c%2Fm", serverName: "kubernetes",
	}, {
		name:   "IPv6",
		secret: tokenSecret(data{"endpoint": "https://[2001:db8::1]"}),
		route:  RouteDirect, endpoint: "https://[2001:db8::1]:443", serverName: "2001:db8::1",
	}, {
		name:   "an underscore, capitals and a final dot in the host",
		secret: tokenSecret(data{"endpoint": "HTTPS://My_Cluster.example.com.:6443/"}),
		route:  RouteDirect, endpoint: "https://My_Cluster.example.com.:6443", serverName: "My_Cluster.example.com",
	}, {
		name:   "a proxy with a password",
		secret: tokenSecret(data{"proxy-url": "http://user:hunter22@proxy.example.com\n"}),
		route:  RouteDirect, endpoint: "https://10.0.0.1:6443", serverName: "10.0.0.1", proxy: "http://user:hunter22@proxy.example.com:80",
	}, {
		name:   "a SOCKS proxy",
		secret: tokenSecret(data{"proxy-url": "socks5h://[::1]:1081/"}),
		route:  RouteDirect, endpoint: "https://10.0.0.1:6443", serverName: "10.0.0.1", proxy: "socks5h://[::1]:1081",
	}, {
		name:   "a tunnel to the default endpoint",
		secret: secretOf(tokenType, tunnel, data{"ca.crt": string(ca.pem), "token": "t"}),
		route:  RouteTunnel, endpoint: "https://kubernetes.default.svc:443", serverName: "kubernetes.default.svc", ca: ca.pem,
	}, {
		name:   "a tunnel through an external server to the default endpoint",
		secret: secretOf(tokenType, tunnel, data{"ca.crt": string(ca.pem), "token": "t"}),
		opts:   ParseOptions{TunnelMode: TunnelExternal},
		route:  RouteTunnel, endpoint: "https://east:443", serverName: "kubernetes.default.svc", ca: ca.pem,
	}, {
		name:   "a tunnel to an endpoint of its own",
		secret: secretOf(tokenType, tunnel, data{"ca.crt": string(ca.pem), "token": "t", "endpoint": "https://10.9.0.1:6443"}),
		opts:   ParseOptions{TunnelMode: TunnelExternal},
		route:  RouteTunnel, endpoint: "https://10.9.0.1:6443", serverName: "10.9.0.1", ca: ca.pem,
	}, {
		name:   "the proxy of a tunnel is ignored",
		secret: secretOf(tokenType, tunnel, data{"ca.crt": string(ca.pem), "token": "t", "proxy-url": "nonsense"}),
		route:  RouteTunnel, endpoint: "https://kubernetes.default.svc:443", serverName: "kubernetes.default.svc", ca: ca.pem,
	}, {
		name:   "keys of other credentials are ignored",
		secret: tokenSecret(data{"tls.crt": "x", "tls.key": "y", "exec": "z", "namespace": "default"}),
		route:  RouteDirect, endpoint: "https://10.0.0.1:6443", serverName: "10.0.0.1",
	}} {
		t.Run(test.name, func(t *testing.T) {
			c := Parse(test.secret, test.opts)
			if err := c.Err(); err != nil {
				t.Fatal(err)
			}
			if c.Name != "east" || c.Namespace != "clusters" || c.UID != "5b2f" || c.ResourceVersion != "41" {
				t.Errorf("identity: %v", c)
			}
			if c.Route != test.route || c.Endpoint.String() != test.endpoint || c.ServerName != test.serverName {
				t.Errorf("route %q, endpoint %q, server name %q", c.Route, c.Endpoint, c.ServerName)
			}
			if string(c.CAData) != string(test.ca) {
				t.Errorf("CA: %s", c.CAData)
			}
			if got := c.ProxyURL; (got == nil) != (test.proxy == "") || got != nil && got.String() != test.proxy {
				t.Errorf("proxy: %v", got)
			}
			config, err := c.TLSConfig()
			if err != nil {
				t.Fatal(err)
			}
			if config.InsecureSkipVerify || c.Insecure {
				t.Error("insecure")
			}
			if config.MinVersion != tls.VersionTLS12 || config.ServerName != test.serverName || (config.RootCAs == nil) != (test.ca == nil) {
				t.Errorf("TLS: %+v", config)
			}
		})
	}
}

func TestParseFaults(t *testing.T) {
	ca := newAuthority(t, "ca")
	client := ca.issue(t, newKey(t), "admin")
	stranger := ca.issue(t, newKey(t), "stranger")
	x509With := func(d data) *corev1.Secret {
		s := secretOf(x509Type, "", data{"endpoint": "https://10.0.0.1:6443", "tls.crt": string(client.cert), "tls.key": string(client.key)})
		for key, value := range d {
			s.Data[key] = []byte(value)
		}
		return s
	}
	tunnelWith := func(name string) *corev1.Secret {
		s := secretOf(tokenType, tunnel, data{"ca.crt": string(ca.pem), "token": "t"})
		s.Name = name
		return s
	}
	label := func(key, value string) *corev1.Secret {
		s := tokenSecret(nil)
		s.Labels[key] = value
		return s
	}
	annotated := func(value string) *corev1.Secret {
		s := tokenSecret(nil)
		s.Annotations = map[string]string{v1alpha1.AnnotationInsecureSkipTLSVerify: value}
		return s
	}
	since := func(value string) *corev1.Secret {
		s := tokenSecret(nil)
		s.Annotations = map[string]string{v1alpha1.AnnotationAgentCertificatesSince: value}
		return s
	}
	unlabelled := tokenSecret(nil)
	unlabelled.Labels = nil
	truncated := string(client.cert[:len(client.cert)/2])
	endpointLabel, credentialLabel := "label "+v1alpha1.LabelEndpointType, "label "+v1alpha1.LabelCredentialType

	for _, test := range []struct {
		name    string
		secret  *corev1.Secret
		opts    ParseOptions
		key     string
		problem string
	}{
		{name: "no Secret", secret: nil, key: "endpoint", problem: "is missing"},
		{name: "no label", secret: unlabelled, key: credentialLabel, problem: "is missing; it must be X509Certificate, ServiceAccountToken or Dynamic"},
		{name: "unknown credential type", secret: label(v1alpha1.LabelCredentialType, "Password"), key: credentialLabel, problem: `is "Password"; it must be`},
		{name: "unknown endpoint type", secret: label(v1alpha1.LabelEndpointType, "clusterproxy"), key: endpointLabel, problem: `is "clusterproxy"; it must be Const (direct) or ClusterProxy (tunnel)`},
		{name: "empty endpoint type", secret: label(v1alpha1.LabelEndpointType, ""), key: endpointLabel, problem: `is "";`},
		{name: "tunnels are off", secret: tunnelWith("east"), opts: ParseOptions{TunnelMode: TunnelOff}, key: endpointLabel, problem: "--tunnel-mode=off"},
		{name: "insecure misspelled", secret: annotated("True"), key: "annotation " + v1alpha1.AnnotationInsecureSkipTLSVerify, problem: `is "True"; it must be "true" or "false"`},
		{name: "agents' certificates since when", secret: since("yesterday"), key: "annotation " + v1alpha1.AnnotationAgentCertificatesSince, problem: `is "yesterday"; it must be a time such as "2026-01-31T12:00:00Z"`},

		{name: "no endpoint", secret: tokenSecret(data{"endpoint": " \n"}), key: "endpoint", problem: "is missing"},
		{name: "no scheme", secret: tokenSecret(data{"endpoint": "10.0.0.1:6443"}), key: "endpoint", problem: "has no scheme"},
		{name: "no scheme, a name", secret: tokenSecret(data{"endpoint": "example.com:6443"}), key: "endpoint", problem: "has no scheme"},
		{name: "no scheme, no port", secret: tokenSecret(data{"endpoint": "example.com"}), key: "endpoint", problem: "has no scheme"},
		{name: "no host", secret: tokenSecret(data{"endpoint": "https:///api"}), key: "endpoint", problem: "has no host"},
		{name: "a port alone", secret: tokenSecret(data{"endpoint": "https://:6443"}), key: "endpoint", problem: "the host is neither"},
		{name: "http", secret: tokenSecret(data{"endpoint": "http://10.0.0.1"}), key: "endpoint", problem: `the scheme is "http"; only https is allowed`},
		{name: "user", secret: tokenSecret(data{"endpoint": "https://user:hunter22@10.0.0.1"}), key: "endpoint", problem: "must not contain a user or password"},
		{name: "query", secret: tokenSecret(data{"endpoint": "https://10.0.0.1?a=b"}), key: "endpoint", problem: "must not have a query"},
		{name: "empty query", secret: tokenSecret(data{"endpoint": "https://10.0.0.1?"}), key: "endpoint", problem: "must not have a query"},
		{name: "fragment", secret: tokenSecret(data{"endpoint": "https://10.0.0.1#"}), key: "endpoint", problem: "must not have a query or a fragment"},
		{name: "port out of range", secret: tokenSecret(data{"endpoint": "https://10.0.0.1:65536"}), key: "endpoint", problem: "the port is not between"},
		{name: "port zero", secret: tokenSecret(data{"endpoint": "https://10.0.0.1:0"}), key: "endpoint", problem: "the port is not between"},
		{name: "port not a number", secret: tokenSecret(data{"endpoint": "https://10.0.0.1:https"}), key: "endpoint", problem: "cannot be parsed as a URL"},
		{name: "zone", secret: tokenSecret(data{"endpoint": "https://[fe80::1%25eth0]:6443"}), key: "endpoint", problem: "the host is neither"},
		{name: "strange host", secret: tokenSecret(data{"endpoint": "https://a..b"}), key: "endpoint", problem: "the host is neither"},
		{name: "dots in the path", secret: tokenSecret(data{"endpoint": "https://10.0.0.1/a/%2e%2e/b"}), key: "endpoint", problem: "the path must not have"},
		{name: "empty segment in the path", secret: tokenSecret(data{"endpoint": "https://10.0.0.1//a"}), key: "endpoint", problem: "the path must not have"},
		{name: "two lines", secret: tokenSecret(data{"endpoint": "https://10.0.0.1\nhttps://10.0.0.2"}), key: "endpoint", problem: "must be one line of text"},
		{name: "not UTF-8", secret: tokenSecret(data{"endpoint": "https://\xff"}), key: "endpoint", problem: "must be one line of text"},
		{name: "long endpoint", secret: tokenSecret(data{"endpoint": "https://" + strings.Repeat("a", 4096)}), key: "endpoint", problem: "is 4104 bytes long; at most 2048 are allowed"},
		{name: "external, name not a host", secret: tunnelWith("a..b"), opts: ParseOptions{TunnelMode: TunnelExternal}, key: "endpoint", problem: "is missing, and the name of the cluster"},

		{name: "server name", secret: tokenSecret(data{"tls-server-name": "https://x"}), key: "tls-server-name", problem: `"https://x" is neither`},
		{name: "long server name", secret: tokenSecret(data{"tls-server-name": strings.Repeat("a.", 200)}), key: "tls-server-name", problem: "is 400 bytes long"},

		{name: "CA without PEM", secret: tokenSecret(data{"ca.crt": "garbage"}), key: "ca.crt", problem: "is not in PEM format; it must contain a block"},
		{name: "CA truncated", secret: tokenSecret(data{"ca.crt": string(ca.pem[:len(ca.pem)/2])}), key: "ca.crt", problem: "contains no certificate that can be used: 1 of 1 PEM blocks cannot be used (block 1: it is truncated or malformed)"},
		{name: "CA not a certificate", secret: tokenSecret(data{"ca.crt": string(encode("CERTIFICATE", []byte("x")))}), key: "ca.crt", problem: "contains no certificate that can be used: 1 of 1 PEM blocks cannot be used (block 1: x509: malformed certificate)"},
		{name: "CA oversize", secret: tokenSecret(data{"ca.crt": strings.Repeat(string(ca.pem), 1+maxCA/len(ca.pem))}), key: "ca.crt", problem: "bytes long; at most"},
		{name: "tunnel without CA", secret: secretOf(tokenType, tunnel, data{"token": "t"}), key: "ca.crt", problem: "is missing; a tunnel needs"},

		{name: "proxy without scheme", secret: tokenSecret(data{"proxy-url": "user:hunter22@proxy:3128"}), key: "proxy-url", problem: "has no scheme"},
		{name: "proxy of another scheme", secret: tokenSecret(data{"proxy-url": "ftp://proxy"}), key: "proxy-url", problem: "the scheme must be http, https, socks5 or socks5h"},
		{name: "proxy with a path", secret: tokenSecret(data{"proxy-url": "http://proxy/path"}), key: "proxy-url", problem: "must not have a path"},
		{name: "proxy with a bad port", secret: tokenSecret(data{"proxy-url": "http://user:hunter22#@proxy"}), key: "proxy-url", problem: "cannot be parsed as a URL"},
		{name: "proxy with a strange host", secret: tokenSecret(data{"proxy-url": "http://-"}), key: "proxy-url", problem: "the host is neither"},

		{name: "no certificate", secret: x509With(data{"tls.crt": ""}), key: "tls.crt", problem: "is missing"},
		{name: "no key", secret: x509With(data{"tls.key": ""}), key: "tls.key", problem: "is missing; it must be the private key of tls.crt"},
		{name: "certificate truncated", secret: x509With(data{"tls.crt": truncated}), key: "tls.crt", problem: "truncated or malformed"},
		{name: "certificate is a key", secret: x509With(data{"tls.crt": string(client.key)}), key: "tls.crt", problem: "contains no block that begins with -----BEGIN CERTIFICATE-----"},
		{name: "key of another certificate", secret: x509With(data{"tls.key": string(stranger.key)}), key: "tls.key", problem: "does not match the first certificate of tls.crt"},
		{name: "key of another kind", secret: x509With(data{"tls.key": string(encode("PRIVATE KEY", mustPKCS8(t)))}), key: "tls.key", problem: "does not match"},
		{name: "key truncated", secret: x509With(data{"tls.key": string(client.key[:len(client.key)/2])}), key: "tls.key", problem: "contains no complete PEM block with a private key"},
		{name: "key is a certificate", secret: x509With(data{"tls.key": string(client.cert)}), key: "tls.key", problem: "contains no complete PEM block with a private key"},
		{name: "key malformed", secret: x509With(data{"tls.key": string(encode("PRIVATE KEY", []byte("x")))}), key: "tls.key", problem: "the private key cannot be parsed"},
		{name: "key encrypted", secret: x509With(data{"tls.key": string(encode("ENCRYPTED PRIVATE KEY", []byte("x")))}), key: "tls.key", problem: "is encrypted"},
		{name: "key oversize", secret: x509With(data{"tls.key": strings.Repeat("k", maxKey+1)}), key: "tls.key", problem: "bytes long; at most"},

		{name: "no token", secret: tokenSecret(data{"token": "\n"}), key: "token", problem: "is missing; it must be a bearer token"},
		{name: "token of two lines", secret: tokenSecret(data{"token": "sekret-one\nsekret-two"}), key: "token", problem: "has more than one line"},
		{name: "token with a space", secret: tokenSecret(data{"token": "Bearer sekret"}), key: "token", problem: "contains white space"},
		{name: "token with a control character", secret: tokenSecret(data{"token": "sekret\x00"}), key: "token", problem: "contains white space, control characters"},
		{name: "token oversize", secret: tokenSecret(data{"token": strings.Repeat("k", maxToken+1)}), key: "token", problem: "is 65537 bytes long"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := Parse(test.secret, test.opts)
			var fault *InvalidSecretError
			if !errors.As(c.Err(), &fault) {
				t.Fatalf("err is %v", c.Err())
			}
			if !slices.ContainsFunc(c.Faults(), func(f *InvalidSecretError) bool {
				return f.Key == test.key && strings.Contains(f.Problem, test.problem)
			}) {
				t.Errorf("no fault of %s that says %q in: %s", test.key, test.problem, c.Message())
			}
			if test.secret != nil && len(c.Faults()) != 1 {
				t.Errorf("more faults than one: %s", c.Message())
			}
			if config, err := c.TLSConfig(); config != nil || !errors.Is(err, fault) {
				t.Errorf("TLSConfig gives %v, %v", config, err)
			}
			for _, secret := range []string{"hunter22", "sekret"} {
				if strings.Contains(c.Err().Error(), secret) {
					t.Errorf("the error holds a secret: %v", c.Err())
				}
			}
		})
	}
}

func mustPKCS8(t *testing.T) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(newRSAKey(t))
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestParseReportsAllFaultsAtOnce(t *testing.T) {
	secret := secretOf(x509Type, "Bogus", data{
		"endpoint": "nonsense", "tls-server-name": "-", "ca.crt": "x", "proxy-url": "x", "tls.crt": "x", "tls.key": "x",
	})
	secret.Annotations = map[string]string{v1alpha1.AnnotationInsecureSkipTLSVerify: "yes"}
	c := Parse(secret, ParseOptions{})
	var keys []string
	for _, f := range c.Faults() {
		keys = append(keys, f.Key)
		if !errors.Is(c.Err(), f) {
			t.Errorf("Err does not hold %v", f)
		}
	}
	want := []string{
		"label " + v1alpha1.LabelEndpointType, "annotation " + v1alpha1.AnnotationInsecureSkipTLSVerify,
		"endpoint", "tls-server-name", "ca.crt", "proxy-url", "tls.crt", "tls.key",
	}
	if !slices.Equal(keys, want) {
		t.Errorf("keys %q, not %q", keys, want)
	}
	if c.Route != "" {
		t.Errorf("route %q of a label that is not understood", c.Route)
	}
	if got := c.Faults()[0].Error(); !strings.HasPrefix(got, "secret clusters/east: label "+v1alpha1.LabelEndpointType+": ") {
		t.Errorf("error %q", got)
	}
}

// Every way in which tools write a key must be read.
func TestParseKeyForms(t *testing.T) {
	ca := newAuthority(t, "ca")
	rsaKey := newRSAKey(t)
	rsaPair := ca.issue(t, rsaKey, "rsa")
	ecKey := newKey(t)
	ecPair := ca.issue(t, ecKey, "ec")
	sec1, err := x509.MarshalECPrivateKey(ecKey.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range map[string]pair{
		"PKCS #8 of RSA":              rsaPair,
		"PKCS #8 of EC":               ecPair,
		"PKCS #1":                     {cert: rsaPair.cert, key: encode("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaKey))},
		"SEC 1 after its parameters":  {cert: ecPair.cert, key: join(encode("EC PARAMETERS", []byte{6, 8}), encode("EC PRIVATE KEY", sec1))},
		"a chain":                     {cert: join(ecPair.cert, ca.pem), key: ecPair.key},
		"certificate and key in both": {cert: join(ecPair.key, ecPair.cert), key: join(ecPair.cert, ecPair.key)},
	} {
		t.Run(name, func(t *testing.T) {
			c := Parse(secretOf(x509Type, "", data{"endpoint": "https://h", "tls.crt": string(p.cert), "tls.key": string(p.key)}), ParseOptions{})
			config, err := c.TLSConfig()
			if err != nil {
				t.Fatal(err)
			}
			if len(config.Certificates) != 1 {
				t.Fatal("no certificate")
			}
			if got := string(c.Credential.CertificatePEM()); strings.Contains(got, "PRIVATE") || !strings.Contains(got, "CERTIFICATE") {
				t.Errorf("CertificatePEM is %s", got)
			}
			if at, ok := c.Credential.Expiry(); !ok || time.Until(at) > 30*time.Minute {
				t.Errorf("expiry %v, %v", at, ok)
			}
		})
	}
}

func TestParseToken(t *testing.T) {
	for _, test := range []struct {
		token  string
		want   string
		expiry time.Time
	}{
		{token: "abc.def", want: "abc.def"},
		{token: "abc\n", want: "abc"},
		{token: "abc\r\n", want: "abc"},
		{token: jwt(`{"exp":1893456000}`) + "\n", want: jwt(`{"exp":1893456000}`), expiry: time.Unix(1893456000, 0).UTC()},
		{token: jwt(`{"exp":1893456000.5}`), want: jwt(`{"exp":1893456000.5}`), expiry: time.Unix(1893456000, 0).UTC()},
		{token: jwt(`{"sub":"x"}`), want: jwt(`{"sub":"x"}`)},
		{token: jwt(`{"exp":1e300}`), want: jwt(`{"exp":1e300}`)},
		{token: jwt(`{"exp":-1}`), want: jwt(`{"exp":-1}`)},
		{token: jwt(`{"exp":"soon"}`), want: jwt(`{"exp":"soon"}`)},
		{token: "a.!.c", want: "a.!.c"},
	} {
		c := Parse(tokenSecret(data{"token": test.token}), ParseOptions{})
		if c.Err() != nil || c.Credential.BearerToken() != test.want {
			t.Errorf("%q: token %q, %v", test.token, c.Credential.BearerToken(), c.Err())
		}
		if at, ok := c.Credential.Expiry(); ok == test.expiry.IsZero() || !at.Equal(test.expiry) {
			t.Errorf("%q: expiry %v, %v", test.token, at, ok)
		}
	}
}

func TestParseExec(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	touch := func(path string) string {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	link := func(target, path string) string {
		if err := os.Symlink(target, path); err != nil {
			t.Fatal(err)
		}
		return path
	}
	inside := touch(filepath.Join(dir, "plugin"))
	nested := touch(filepath.Join(dir, "deeper", "plugin"))
	foreign := touch(filepath.Join(outside, "plugin"))
	plain := filepath.Join(dir, "data")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	dirLink := link(dir, filepath.Join(outside, "link-to-dir"))
	linkOut := link(foreign, filepath.Join(dir, "link-out"))
	linkIn := link(inside, filepath.Join(dir, "link-in"))
	sibling := dir + "-sibling"
	t.Cleanup(func() { _ = os.RemoveAll(sibling) })
	touch(filepath.Join(sibling, "plugin"))

	config := func(command string) string {
		return `{"apiVersion":"client.authentication.k8s.io/v1","command":"` + command + `","args":["--password=hunter22"],"env":null}`
	}
	for _, test := range []struct {
		name, exec, dir, problem string
	}{
		{name: "inside", exec: config(inside), dir: dir},
		{name: "nested", exec: config(nested), dir: dir},
		{name: "a link inside", exec: config(linkIn), dir: dir},
		{name: "the directory is a link", exec: config(inside), dir: dirLink},
		{name: "v1beta1", exec: strings.Replace(config(inside), "io/v1", "io/v1beta1", 1), dir: dir},
		{name: "no directory", exec: config(inside), problem: "neither --exec-credential-plugins nor --exec-credential-dir is set"},
		{name: "the directory is not there", exec: config(inside), dir: filepath.Join(dir, "absent"), problem: "--exec-credential-dir cannot be read"},
		{name: "outside", exec: config(foreign), dir: dir, problem: "is not in --exec"},
		{name: "a link to outside", exec: config(linkOut), dir: dir, problem: "is not in --exec"},
		{name: "dots to outside", exec: config(dir + "/../" + filepath.Base(sibling) + "/plugin"), dir: dir, problem: "is not in --exec"},
		{name: "the same prefix", exec: config(filepath.Join(sibling, "plugin")), dir: dir, problem: "is not in --exec"},
		{name: "the directory itself", exec: config(dir), dir: dir, problem: "is not in --exec"},
		{name: "relative", exec: config("plugin"), dir: dir, problem: "must be an absolute path"},
		{name: "not there", exec: config(filepath.Join(dir, "absent")), dir: dir, problem: "does not exist"},
		{name: "a NUL", exec: strings.Replace(config(inside), inside, inside+`\u0000`, 1), dir: dir, problem: "cannot be read"},
		{name: "no command", exec: config(""), dir: dir, problem: "must be an absolute path"},
		{name: "not JSON", exec: "hunter22", dir: dir, problem: "is not the exec configuration"},
		{name: "no version", exec: `{"command":"` + inside + `"}`, dir: dir, problem: "apiVersion must be"},
		{name: "interactive", exec: strings.Replace(config(inside), `"command"`, `"interactiveMode":"Always","command"`, 1), dir: dir, problem: "must not be Always"},
		{name: "not a program", exec: config(plain), dir: dir, problem: "is not an executable file"},
		{name: "a folder", exec: config(filepath.Dir(nested)), dir: dir, problem: "is not an executable file"},
		{name: "variables", exec: strings.Replace(config(inside), "null", `[{"name":"BASH_ENV","value":"$(hunter22)"}]`, 1), dir: dir,
			problem: "env is not allowed, because it could make the program run anything; remove it, or ask the operator of the gateway to define a plugin"},
		{name: "parameters", exec: strings.Replace(config(inside), `"args"`, `"parameters":{"a":"hunter22"},"args"`, 1), dir: dir, problem: "parameters can be set only with plugin"},
		{name: "empty", exec: " ", dir: dir, problem: "is missing"},
		{name: "oversize", exec: strings.Repeat(" ", maxExec) + config(inside), dir: dir, problem: "bytes long"},
	} {
		t.Run(test.name, func(t *testing.T) {
			secret := secretOf(dynamicType, "", data{"endpoint": "https://h", "exec": test.exec})
			c := Parse(secret, ParseOptions{ExecCredentialDir: test.dir, ExecCredentialEnv: []string{"HOME"}})
			if test.problem != "" {
				if len(c.Faults()) != 1 || c.Faults()[0].Key != "exec" || !strings.Contains(c.Message(), test.problem) || strings.Contains(c.Message(), "hunter22") {
					t.Errorf("message %q", c.Message())
				}
				if c.Credential.Plugin() != nil {
					t.Error("the refused plugin is there")
				}
				return
			}
			got := c.Credential.Plugin()
			if c.Err() != nil || got == nil || got.Dir != test.dir || got.Args[0] != "--password=hunter22" || len(got.Env) != 0 || !slices.Equal(got.InheritEnv, []string{"HOME"}) {
				t.Errorf("%v, %v", got, c.Err())
			}
		})
	}
}

// A Secret selects a plugin by its name, and can set its parameters and nothing else.
func TestParsePluginByName(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "aws-iam-authenticator")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	plugins := pluginsOf(t, program, "--cluster")
	both := ParseOptions{ExecPlugins: plugins, ExecCredentialDir: dir, ExecCredentialEnv: []string{"HOME"}}
	const other = "with plugin, only parameters and apiVersion can be set"
	for _, test := range []struct {
		name, exec string
		opts       ParseOptions
		problem    string
	}{
		{name: "parameters", exec: `{"plugin":"aws","parameters":{"cluster":"prod"}}`, opts: ParseOptions{ExecPlugins: plugins}},
		{name: "with a directory too", exec: `{"plugin":"aws","parameters":{"cluster":"prod"}}`, opts: both},
		{name: "the version of the definition", exec: `{"plugin":"aws","apiVersion":"client.authentication.k8s.io/v1","parameters":{"cluster":"prod"}}`, opts: both},
		{name: "another version", exec: `{"plugin":"aws","apiVersion":"client.authentication.k8s.io/v1beta1","parameters":{"cluster":"prod"}}`, opts: both, problem: "apiVersion must be client.authentication.k8s.io/v1,"},
		{name: "no parameters", exec: `{"plugin":"aws"}`, opts: both, problem: "parameters[cluster] is missing; the plugin aws requires it"},
		{name: "a wrong parameter", exec: `{"plugin":"aws","parameters":{"cluster":"--hunter22"}}`, opts: both, problem: "parameters[cluster] must not begin with"},
		{name: "an unknown plugin", exec: `{"plugin":"hunter22"}`, opts: both, problem: "plugin must be one of those that the operator of the gateway has defined: aws"},
		{name: "an empty name", exec: `{"plugin":"","command":"` + program + `"}`, opts: both, problem: other},
		{name: "arguments", exec: `{"plugin":"aws","parameters":{"cluster":"prod"},"args":["hunter22"]}`, opts: both, problem: other},
		{name: "variables", exec: `{"plugin":"aws","parameters":{"cluster":"prod"},"env":[{"name":"BASH_ENV","value":"hunter22"}]}`, opts: both, problem: other},
		{name: "a command", exec: `{"plugin":"aws","parameters":{"cluster":"prod"},"command":"` + program + `"}`, opts: both, problem: other},
		{name: "a typing error", exec: `{"plugin":"aws","parameters":{"cluster":"prod"},"parameter":{"region":"hunter22"}}`, opts: both, problem: other},
		{name: "a path as the name", exec: `{"plugin":"` + program + `"}`, opts: both, problem: "plugin must be one of"},
		{name: "a number", exec: `{"plugin":"aws","parameters":{"cluster":1}}`, opts: both, problem: "is not the exec configuration"},
		{name: "no plugins", exec: `{"plugin":"aws"}`, opts: ParseOptions{ExecCredentialDir: dir}, problem: "the operator of the gateway has defined no plugins (--exec-credential-plugins is not set)"},
		{name: "a path without a directory", exec: `{"apiVersion":"client.authentication.k8s.io/v1","command":"` + program + `"}`, opts: ParseOptions{ExecPlugins: plugins},
			problem: "must select one of the operator's plugins with plugin, because --exec-credential-dir is not set"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := Parse(secretOf(dynamicType, "", data{"endpoint": "https://h", "exec": test.exec}), test.opts)
			got := c.Credential.Plugin()
			if test.problem != "" {
				if len(c.Faults()) != 1 || c.Faults()[0].Key != "exec" || !strings.Contains(c.Message(), test.problem) || strings.Contains(c.Message(), "hunter22") || got != nil {
					t.Errorf("message %q, %v", c.Message(), got)
				}
				return
			}
			if c.Err() != nil || got == nil || got.Path != program || got.Dir != "" || !slices.Equal(got.Args, []string{"token", "--cluster=prod"}) ||
				!slices.Equal(got.Env, []string{"REGION=eu"}) || len(got.InheritEnv) != 0 {
				t.Errorf("%v, %v", got, c.Err())
			}
		})
	}
}

func TestParseInsecureOnlyByTheAnnotation(t *testing.T) {
	for value, want := range map[string]bool{"true": true, "false": false, "": false} {
		secret := tokenSecret(nil)
		secret.Annotations = map[string]string{v1alpha1.AnnotationInsecureSkipTLSVerify: value}
		c := Parse(secret, ParseOptions{})
		config, err := c.TLSConfig()
		if err != nil || config.InsecureSkipVerify != want || c.Insecure != want {
			t.Errorf("%q: %v, %v", value, c.Insecure, err)
		}
	}
	// A tunnel without a CA needs the annotation, too.
	secret := secretOf(tokenType, tunnel, data{"token": "t"})
	secret.Annotations = map[string]string{v1alpha1.AnnotationInsecureSkipTLSVerify: "true"}
	if c := Parse(secret, ParseOptions{}); c.Err() != nil || !c.Insecure {
		t.Errorf("tunnel: %v", c.Err())
	}
}

// The configuration is tried against a real server, because what matters is whom it accepts.
func TestTLSConfigAgainstServer(t *testing.T) {
	ca, otherCA := newAuthority(t, "ca"), newAuthority(t, "other")
	client := ca.issue(t, newKey(t), "admin")
	serving := ca.issue(t, newKey(t), "api.example.com")
	keyPair, err := tls.X509KeyPair(serving.cert, serving.key)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		_, _ = w.Write([]byte(req.TLS.PeerCertificates[0].Subject.CommonName))
	}))
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{keyPair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}
	server.StartTLS()
	defer server.Close()
	_, port, err := net.SplitHostPort(server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}

	for _, test := range []struct {
		name, serverName, ca, insecure string
		ok                             bool
	}{
		{name: "right CA and name", serverName: "api.example.com", ca: string(ca.pem), ok: true},
		{name: "wrong CA", serverName: "api.example.com", ca: string(otherCA.pem)},
		{name: "wrong name", serverName: "other.example.com", ca: string(ca.pem)},
		{name: "name of the endpoint", ca: string(ca.pem)},
		{name: "the system's roots", serverName: "api.example.com"},
		{name: "insecure", insecure: "true", ok: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			secret := secretOf(x509Type, "", data{
				"endpoint": "https://127.0.0.1:" + port, "tls-server-name": test.serverName, "ca.crt": test.ca,
				"tls.crt": string(client.cert), "tls.key": string(client.key),
			})
			secret.Annotations = map[string]string{v1alpha1.AnnotationInsecureSkipTLSVerify: test.insecure}
			config, err := Parse(secret, ParseOptions{}).TLSConfig()
			if err != nil {
				t.Fatal(err)
			}
			transport := &http.Transport{TLSClientConfig: config}
			defer transport.CloseIdleConnections()
			res, err := (&http.Client{Transport: transport}).Get(server.URL)
			if (err == nil) != test.ok {
				t.Errorf("err is %v", err)
			}
			if err == nil {
				_ = res.Body.Close()
			}
		})
	}
}

// Callers set protocols and callbacks on the configuration; no two must share one.
func TestTLSConfigIsTheCallers(t *testing.T) {
	ca := newAuthority(t, "ca")
	c := Parse(tokenSecret(data{"ca.crt": string(ca.pem)}), ParseOptions{})
	first, err := c.TLSConfig()
	if err != nil {
		t.Fatal(err)
	}
	first.InsecureSkipVerify, first.ServerName = true, "changed"
	first.RootCAs.AddCert(newAuthority(t, "another").cert)
	second, err := c.TLSConfig()
	if err != nil {
		t.Fatal(err)
	}
	want := x509.NewCertPool()
	want.AddCert(ca.cert)
	if second.InsecureSkipVerify || second.ServerName != "10.0.0.1" || !second.RootCAs.Equal(want) {
		t.Errorf("changed: %+v", second)
	}
}

// 1 MiB of noise in any key takes no time to speak of, and says little.
func TestParseNoise(t *testing.T) {
	noise := map[string][]byte{
		"letters":    []byte(strings.Repeat("A", 1<<20)),
		"zeros":      make([]byte, 1<<20),
		"dashes":     []byte(strings.Repeat("-----BEGIN ", 1<<20/11)),
		"blocks":     []byte(strings.Repeat("-----BEGIN CERTIFICATE-----\n", 1<<20/28)),
		"block ends": []byte(strings.Repeat("-----BEGIN X-----\n-----END Y-----\n", 1<<20/34)),
		"lines":      []byte(strings.Repeat("\n", 1<<20)),
		"brackets":   []byte(strings.Repeat("[", 1<<20)),
		"below cap":  []byte(strings.Repeat("-----BEGIN CERTIFICATE-----\n", maxCA/28)),
	}
	for name, content := range noise {
		for _, key := range []string{"endpoint", "ca.crt", "ca", "tls-server-name", "proxy-url", "tls.crt", "tls.key", "token", "exec"} {
			credential := map[string]v1alpha1.CredentialType{"tls.crt": x509Type, "tls.key": x509Type, "exec": dynamicType}[key]
			if credential == "" {
				credential = tokenType
			}
			secret := secretOf(credential, "", data{"endpoint": "https://h", "token": "t"})
			secret.Data[key] = content
			start := time.Now()
			c := Parse(secret, ParseOptions{ExecCredentialDir: t.TempDir()})
			if took := time.Since(start); took > 15*time.Second {
				t.Errorf("%s in %s took %v", name, key, took)
			}
			if c.Err() == nil && name != "lines" {
				t.Errorf("%s in %s is valid", name, key)
			}
			if len(c.Message()) > 2048 {
				t.Errorf("%s in %s: a message of %d bytes", name, key, len(c.Message()))
			}
		}
	}
}

func TestIsCluster(t *testing.T) {
	if IsCluster(nil) || IsCluster(&corev1.Secret{}) || !IsCluster(tokenSecret(nil)) {
		t.Error("the label of the credential's type decides")
	}
}

// As with kubectl, one CA certificate that cannot be used does not make the others unusable.
func TestParseSkipsUnusableCACertificates(t *testing.T) {
	ca, client := newAuthority(t, "ca"), newAuthority(t, "client")
	keyPEM, err := x509.MarshalPKCS8PrivateKey(client.key)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct{ bundle, warning string }{
		"malformed": {string(encode("CERTIFICATE", []byte("x"))) + string(ca.pem), "ca.crt: 1 of 2 PEM blocks cannot be used (block 1: x509: malformed certificate)"},
		"truncated": {string(ca.pem) + string(client.pem[:len(client.pem)/2]), "ca.crt: 1 of 2 PEM blocks cannot be used (block 2: it is truncated or malformed)"},
		"key":       {string(ca.pem) + string(encode("PRIVATE KEY", keyPEM)), `ca.crt: 1 of 2 PEM blocks cannot be used (block 2: its type is "PRIVATE KEY", not CERTIFICATE)`},
	} {
		secret := tokenSecret(data{"ca.crt": test.bundle})
		secret.Annotations = map[string]string{
			v1alpha1.AnnotationHealthy: "true", v1alpha1.AnnotationHealthyReason: "Healthy",
			v1alpha1.AnnotationConditions: `[{"type":"Ready","status":"True","reason":"Healthy","message":"the API server is ready"}]`,
		}
		c := Parse(secret, ParseOptions{})
		if c.Err() != nil || !bytes.Equal(c.CAData, ca.pem) {
			t.Errorf("%s: %v, CAs %q", name, c.Err(), c.CAData)
		}
		status := Render(secret, ParseOptions{}).Status
		if ready := status.Conditions[0]; !status.Healthy || ready.Status != "True" || ready.Reason != "Healthy" || ready.Message != "the API server is ready; "+test.warning {
			t.Errorf("%s: healthy %v, %+v", name, status.Healthy, ready)
		}
	}
}

// TestParseIdentity checks who a cluster sees, and that nothing that is not understood ends in the
// account of the gateway.
func TestParseIdentity(t *testing.T) {
	const rules = "apiVersion: cluster.core.oam.dev/v1alpha1\nkind: ClusterGatewayProxyConfiguration\nspec: {clientIdentityExchanger: {rules: [%s]}}\n"
	good := fmt.Sprintf(rules, "{name: a, type: PrivilegedIdentityExchanger, source: {user: jane}}")
	webhook := fmt.Sprintf(rules, "{name: a, type: ExternalIdentityExchanger, source: {user: jane}, url: 'https://hook.example.com/exchange'}")
	for name, test := range map[string]struct {
		identity, rules string
		opts            ParseOptions
		want            identity.Mode
		hasRules        bool
		reason, problem string
	}{
		"nothing":                        {want: identity.ModeCredential},
		"nothing, with rules for all":    {opts: ParseOptions{DefaultIdentity: identity.ModeRules}, want: identity.ModeRules},
		"credential":                     {identity: "credential", opts: ParseOptions{DefaultIdentity: identity.ModeRules}, want: identity.ModeCredential},
		"impersonate":                    {identity: "impersonate", opts: ParseOptions{DefaultIdentity: identity.ModeRules}, want: identity.ModeImpersonate},
		"rules without rules of its own": {identity: "rules", want: identity.ModeRules},
		"rules":                          {rules: good, want: identity.ModeRules, hasRules: true},
		"rules, said twice":              {identity: "rules", rules: good, want: identity.ModeRules, hasRules: true},
		"a document without rules":       {rules: "spec: {}", want: identity.ModeRules, hasRules: true},
		"white space":                    {rules: " \n", want: identity.ModeCredential},
		"a webhook that is allowed":      {rules: webhook, opts: ParseOptions{IdentityWebhooks: []string{"https://hook.example.com/exchange"}}, want: identity.ModeRules, hasRules: true},
		"a webhook that is not allowed":  {rules: webhook, reason: "UnsupportedProxyConfiguration", problem: "--identity-webhook-url"},
		"text":                           {rules: "not rules", reason: "UnsupportedProxyConfiguration", problem: "is not a ClusterGatewayProxyConfiguration"},
		"another cluster's rule":         {rules: strings.Replace(good, "{user: jane}", "{user: jane, cluster: other}", 1), reason: "UnsupportedProxyConfiguration", problem: "applies to no other"},
		"an unknown mode":                {identity: "Impersonate", reason: "InvalidSecret", problem: "\"Impersonate\""},
		"credential, and rules":          {identity: "credential", rules: good, reason: "InvalidSecret", problem: "remove one of them"},
		"impersonate, and rules":         {identity: "impersonate", rules: good, reason: "InvalidSecret", problem: "remove one of them"},
		"credential, and a broken rule":  {identity: "credential", rules: "x", reason: "InvalidSecret", problem: "remove one of them"},
	} {
		t.Run(name, func(t *testing.T) {
			secret := tokenSecret(nil)
			secret.Annotations = map[string]string{v1alpha1.AnnotationHealthy: "true"}
			if test.identity != "" {
				secret.Annotations["cluster.core.oam.dev/identity"] = test.identity
			}
			if test.rules != "" {
				secret.Annotations["cluster.core.oam.dev/cluster-gateway-proxy-configuration"] = test.rules
			}
			c := Parse(secret, test.opts)
			rendered := Render(secret, test.opts)
			if test.reason != "" {
				ready := rendered.Status.Conditions[0]
				if c.Err() == nil || c.Identity.Mode != "" || ready.Status != "False" || ready.Reason != test.reason || !strings.Contains(ready.Message, test.problem) {
					t.Errorf("%v, %+v, %+v", c.Err(), c.Identity, ready)
				}
				return
			}
			if c.Err() != nil || c.Identity.Mode != test.want || (c.Identity.Rules != nil) != test.hasRules || rendered.Status.Identity != string(test.want) {
				t.Errorf("%v, %+v, %q", c.Err(), c.Identity, rendered.Status.Identity)
			}
		})
	}
	// An annotation that is there and empty is not understood.
	secret := tokenSecret(nil)
	secret.Annotations = map[string]string{v1alpha1.AnnotationIdentity: ""}
	if c := Parse(secret, ParseOptions{}); c.Err() == nil || c.Identity.Mode != "" {
		t.Errorf("%+v", c.Identity)
	}
	// With another fault, the reason is that of an invalid Secret.
	secret = tokenSecret(data{"token": ""})
	secret.Annotations = map[string]string{v1alpha1.AnnotationProxyConfiguration: "x"}
	if c := Parse(secret, ParseOptions{}); c.Reason() != "InvalidSecret" || len(c.Faults()) != 2 {
		t.Errorf("%s: %s", c.Reason(), c.Message())
	}
}

// TestIdentityIsPartOfTheFingerprint checks that a change of the identity replaces the transports.
func TestIdentityIsPartOfTheFingerprint(t *testing.T) {
	seen := map[Fingerprint]string{}
	for _, annotations := range []map[string]string{
		nil, {v1alpha1.AnnotationIdentity: "impersonate"}, {v1alpha1.AnnotationIdentity: "rules"},
		{v1alpha1.AnnotationProxyConfiguration: "spec: {}"}, {v1alpha1.AnnotationProxyConfiguration: "spec: {clientIdentityExchanger: {}}"},
	} {
		secret := tokenSecret(nil)
		secret.Annotations = annotations
		f := Parse(secret, ParseOptions{}).Fingerprint()
		if other, same := seen[f]; same {
			t.Errorf("%v and %s have the same fingerprint", annotations, other)
		}
		seen[f] = fmt.Sprint(annotations)
	}
}
