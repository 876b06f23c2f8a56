// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build integration

package bootstrap_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/oam-dev/cluster-gateway/pkg/bootstrap"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
	"github.com/oam-dev/cluster-gateway/test/lab"
)

// serving describes how the API server of a cluster is served.
type serving struct {
	key crypto.Signer
	// listen is an address without a port; prefix is a path before every path of the API.
	listen, prefix string
	// name, if set, is the only name in the certificate.
	name      string
	notBefore time.Time
	// more are other CAs in the bundle of the kubeconfig.
	more []byte
	// proxy is whether only a proxy finds the server.
	proxy bool
}

// unreachableHost is a name that only a proxy of these tests finds.
const unreachableHost = "api.cluster.invalid"

func newRSA(t *testing.T) crypto.Signer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 4096)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newECDSA(t *testing.T, curve elliptic.Curve) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newEd25519(t *testing.T) crypto.Signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// issue signs a certificate for a key. Without a parent, it is a CA.
func issue(t *testing.T, template *x509.Certificate, key crypto.Signer, parent *x509.Certificate, parentKey crypto.Signer) *x509.Certificate {
	t.Helper()
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	if template.NotBefore.IsZero() {
		template.NotBefore = time.Now().Add(-time.Minute)
	}
	template.NotAfter = time.Now().Add(time.Hour)
	if parent == nil {
		template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign
		parent, parentKey = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func encode(certs ...*x509.Certificate) []byte {
	var bundle []byte
	for _, cert := range certs {
		bundle = append(bundle, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
	return bundle
}

// start serves an API server as described, and returns a kubeconfig of its administrator.
func (s serving) start(t *testing.T, c *lab.Cluster) (kubeconfig, endpoint string) {
	t.Helper()
	ca := issue(t, &x509.Certificate{Subject: pkix.Name{CommonName: "ca"}}, s.key, nil, nil)
	template := &x509.Certificate{Subject: pkix.Name{CommonName: "server"}, NotBefore: s.notBefore, DNSNames: []string{unreachableHost}, IPAddresses: []net.IP{net.ParseIP(s.listen)}}
	if s.name != "" {
		template.DNSNames, template.IPAddresses = []string{s.name}, nil
	}
	cert := issue(t, template, s.key, ca, s.key)
	listener, err := net.Listen("tcp", net.JoinHostPort(s.listen, "0"))
	if err != nil {
		t.Skip(err)
	}
	handler := behind(t, c, func(http.ResponseWriter, *http.Request) bool { return false })
	server := &httptest.Server{Listener: listener, Config: &http.Server{Handler: http.StripPrefix(s.prefix, handler)}, EnableHTTP2: true}
	server.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: s.key}}, MinVersion: tls.VersionTLS12}
	server.StartTLS()
	t.Cleanup(server.Close)

	endpoint = server.URL + s.prefix
	config := &clientcmdapi.Cluster{CertificateAuthorityData: append(encode(ca), s.more...), TLSServerName: s.name}
	if s.proxy {
		_, port, err := net.SplitHostPort(listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r.Host = strings.Replace(r.Host, unreachableHost, s.listen, 1)
			connect(w, r)
		}))
		t.Cleanup(proxy.Close)
		endpoint, config.ProxyURL = "https://"+net.JoinHostPort(unreachableHost, port)+s.prefix, proxy.URL
	}
	config.Server = endpoint
	all := clientcmdapi.NewConfig()
	all.Clusters["a"], all.AuthInfos["a"] = config, administrator(t, c)
	all.Contexts["a"] = &clientcmdapi.Context{Cluster: "a", AuthInfo: "a"}
	all.CurrentContext = "a"
	kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*all, kubeconfig); err != nil {
		t.Fatal(err)
	}
	return kubeconfig, endpoint
}

// manyCAs are as many as an operating system trusts.
func manyCAs(t *testing.T) []byte {
	t.Helper()
	var bundle []byte
	for i := range 140 {
		key := newECDSA(t, elliptic.P256())
		bundle = append(bundle, encode(issue(t, &x509.Certificate{Subject: pkix.Name{CommonName: fmt.Sprintf("CA %d of an operating system", i), Organization: []string{strings.Repeat("o", 60)}}}, key, nil, nil))...)
	}
	return bundle
}

// TestRegisterOddServers registers clusters whose API servers, and those of the hub, are served in
// unusual ways, and uses what was registered as the gateway would.
func TestRegisterOddServers(t *testing.T) {
	const here = "127.0.0.1"
	for _, test := range []struct {
		name         string
		hub, cluster serving
		now          time.Duration
		want         string // in the error
	}{
		{name: "RSA 4096", hub: serving{key: newRSA(t), listen: here}, cluster: serving{key: newRSA(t), listen: here}},
		{name: "ECDSA", hub: serving{key: newECDSA(t, elliptic.P256()), listen: here}, cluster: serving{key: newECDSA(t, elliptic.P384()), listen: here}},
		{name: "Ed25519", hub: serving{key: newEd25519(t), listen: here}, cluster: serving{key: newEd25519(t), listen: here}},
		{name: "IPv6", hub: serving{key: newEd25519(t), listen: "::1"}, cluster: serving{key: newEd25519(t), listen: "::1"}},
		{name: "path prefix", hub: serving{key: newEd25519(t), listen: here, prefix: "/hubs/a"}, cluster: serving{key: newEd25519(t), listen: here, prefix: "/k8s/clusters/c-1"}},
		{name: "another name in the certificate", hub: serving{key: newEd25519(t), listen: here, name: "hub"}, cluster: serving{key: newEd25519(t), listen: here, name: "kubernetes"}},
		{name: "140 CAs", hub: serving{key: newEd25519(t), listen: here, more: manyCAs(t)}, cluster: serving{key: newEd25519(t), listen: here, more: manyCAs(t)}},
		{name: "proxy", hub: serving{key: newEd25519(t), listen: here, proxy: true}, cluster: serving{key: newEd25519(t), listen: here, proxy: true, prefix: "/a"}},
		{name: "clock four minutes behind", hub: serving{key: newEd25519(t), listen: here}, cluster: serving{key: newEd25519(t), listen: here}, now: -4 * time.Minute},
		{name: "clock four minutes ahead", hub: serving{key: newEd25519(t), listen: here}, cluster: serving{key: newEd25519(t), listen: here}, now: 4 * time.Minute},
		{name: "the hub's certificate begins in four minutes", hub: serving{key: newEd25519(t), listen: here, notBefore: time.Now().Add(4 * time.Minute)}, cluster: serving{key: newEd25519(t), listen: here},
			want: "the hub: by the clock of this machine, the certificate of the server"},
		{name: "the cluster's certificate begins in four minutes", hub: serving{key: newEd25519(t), listen: here}, cluster: serving{key: newEd25519(t), listen: here, notBefore: time.Now().Add(4 * time.Minute)},
			want: `cluster "near-1": by the clock of this machine, the certificate of the server`},
	} {
		t.Run(test.name, func(t *testing.T) {
			ctx := site.Begin(t)
			hub, _ := test.hub.start(t, site.Hub)
			kubeconfig, endpoint := test.cluster.start(t, site.Near)
			config := bootstrap.Config{Now: func() time.Time { return time.Now().Add(test.now) }}
			args := []string{"register", "near-1", "--kubeconfig", hub, "--cluster-kubeconfig", kubeconfig, "--route", "direct", "--endpoint", endpoint, "--wait", "0"}
			if test.cluster.proxy { // which is on this machine
				loaded, err := clientcmd.LoadFromFile(kubeconfig)
				if err != nil {
					t.Fatal(err)
				}
				args = append(args, "--proxy-url", loaded.Clusters["a"].ProxyURL)
			}
			_, _, err := site.Run(ctx, config, args...)
			if test.want != "" {
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("got %v, want that it says %q", err, test.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			use(ctx, t, site.HubSecret(ctx, t, "near-1"))

			// The same with an agent, whose certificate is valid now.
			dir := filepath.Join(t.TempDir(), "agent")
			args = []string{"register", "near-1", "--kubeconfig", hub, "--cluster-kubeconfig", kubeconfig, "--out-dir", dir, "--wait", "0"}
			if _, _, err := site.Run(ctx, config, args...); err != nil {
				t.Fatal(err)
			}
			secret := site.HubSecret(ctx, t, "near-1")
			if got := string(secret.Data["endpoint"]); got != endpoint {
				t.Errorf("the agent's endpoint is %s, want %s", got, endpoint)
			}
			pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"))
			if err != nil {
				t.Fatal(err)
			}
			if err := registration.VerifyAgentCertificate([]*x509.Certificate{pair.Leaf}, nil, "near-1", time.Now()); err != nil {
				t.Error(err)
			}
		})
	}
}

// use asks a cluster for its namespaces with what is in its Secret alone.
func use(ctx context.Context, t *testing.T, secret *corev1.Secret) {
	t.Helper()
	c := cluster.Parse(secret, cluster.ParseOptions{})
	if err := c.Err(); err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(secret.Data["ca.crt"]) {
		t.Fatal("the Secret has no CA")
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: c.ServerName, MinVersion: tls.VersionTLS12}}
	defer transport.CloseIdleConnections()
	if c.ProxyURL != nil {
		transport.Proxy = func(*http.Request) (*url.URL, error) { return c.ProxyURL, nil }
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.Endpoint.JoinPath("api/v1/namespaces").String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+string(bytes.TrimSpace(secret.Data["token"])))
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("the cluster answers %s", resp.Status)
	}
}
