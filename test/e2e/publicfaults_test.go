// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/oam-dev/cluster-gateway/test/lab"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

// TestPublicFaults repeats published attacks on products of this kind, on each route and endpoint,
// against real API servers. docs/security.md has the list.
func TestPublicFaults(t *testing.T) {
	ctx := bounded(t, caseTimeout)
	const attacker = "e2e-attacker"
	for _, hub := range []*lab.Cluster{shared.embeddedHub, shared.externalHub} {
		grantOn(ctx, t, hub, attacker, rbacv1.PolicyRule{
			APIGroups: []string{"cluster.core.oam.dev"}, Resources: []string{"clustergateways/proxy"}, Verbs: []string{"*"},
		})
	}
	forEachRoute(t, func(t *testing.T, r route) {
		hub := shared.embeddedHub
		if r.gateway == shared.external {
			hub = shared.externalHub
		}
		cert, key, err := hub.ClientCertificate(attacker)
		if err != nil {
			t.Fatal(err)
		}
		config := anonymous(r.gateway.RESTConfig(r.door))
		config.CertData, config.KeyData = cert, key
		a := &attack{t: t, config: config, base: gatewayPath + "/" + r.cluster + "/proxy"}
		labtest.Within(t, labtest.Timeout, "the grant to take effect", func() error {
			return wantCode(ask(ctx, t, config, http.MethodGet, a.base+"/version"), http.StatusOK)
		})
		marker := a.marker(ctx, r.target)

		// kubernetes/kubernetes#71411: after an upgrade that the backend refused, the proxy left the
		// connection to the backend open to the client, with the proxy's credential.
		t.Run("CVE-2018-1002105", func(t *testing.T) {
			answers := a.send(t,
				"GET "+a.base+"/api/v1/namespaces/default/pods/e2e-nobody/exec?command=x HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
					"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AQIDBAUGBwgJCgsMDQ4PEA==\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n",
				"GET /api/v1/namespaces/default/configmaps/"+marker+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
			if strings.HasPrefix(answers, "HTTP/1.1 101") || strings.Contains(answers, "e2e-marker-value") {
				t.Errorf("the second request reached the cluster: %s", answers)
			}
		})
		// rancher/rancher#33588: a header that is named in Connection is removed, also when the proxy
		// has set it.
		t.Run("CVE-2021-31999", func(t *testing.T) {
			want := a.whoami(t)
			for _, name := range []string{"Authorization", "Impersonate-User, Impersonate-Group", "authorization, impersonate-user, X-Remote-User"} {
				if got := a.whoami(t, "Connection: close, "+name); got != want {
					t.Errorf("Connection: %s: the cluster sees %s, want %s", name, got, want)
				}
			}
		})
		// open-cluster-management-io/cluster-proxy#335, and Rancher's CVE-2021-36776: headers of the
		// caller impersonate somebody in the cluster.
		t.Run("CVE-2021-36776 and cluster-proxy 335", func(t *testing.T) {
			want := a.whoami(t)
			for _, headers := range []string{
				"Impersonate-User: e2e-somebody", "impersonate-user: e2e-somebody\r\nIMPERSONATE-GROUP: system:masters", "Impersonate-Extra-Scopes: x", "Impersonate-Uid: 0",
				"X-Remote-User: e2e-somebody\r\nX-Remote-Group: system:masters",
			} {
				// The hub, or the gateway on its own endpoint, can also refuse it.
				if got := a.whoami(t, headers); got != want && !strings.Contains(got, "403") && !strings.Contains(got, "400") {
					t.Errorf("%s: the cluster sees %s, want %s", headers, got, want)
				}
			}
		})
		// open-cluster-management-io/cluster-proxy#360: the path names another host behind the firewall.
		t.Run("cluster-proxy 360", func(t *testing.T) {
			for _, target := range []string{
				"https://127.0.0.1:1/e2e-nowhere", a.base + "//127.0.0.1:1/version", a.base + "/@127.0.0.1:1/version", a.base + "/https://127.0.0.1:1/version",
				a.base + "/..//127.0.0.1:1/version", a.base + "\\@127.0.0.1:1/version",
			} {
				answer := a.send(t, "GET "+target+" HTTP/1.1\r\nHost: 127.0.0.1:1\r\nConnection: close\r\n\r\n")
				if strings.HasPrefix(answer, "HTTP/1.1 2") || strings.Contains(answer, "connection refused") {
					t.Errorf("%s: %s", target, answer)
				}
			}
		})
	})

	// Karmada's pull mode (CVE-2024-56513) gave agents rights in the control plane.
	t.Run("CVE-2024-56513", func(t *testing.T) {
		pair, err := shared.embedded.TunnelCA().Issue(lab.CertOptions{CN: "edge", Orgs: []string{"cluster.core.oam.dev:tunnel-agents"}})
		if err != nil {
			t.Fatal(err)
		}
		for _, at := range []struct {
			name   string
			config *rest.Config
		}{{"the hub", shared.embeddedHub.RESTConfig()}, {"the gateway", shared.embedded.RESTConfig(lab.ViaOwnEndpoint)}} {
			config := anonymous(at.config)
			config.CertData, config.KeyData = pair.CertPEM, pair.KeyPEM
			for _, path := range []string{gatewayPath + "/edge/proxy/version", gatewayPath, "/api/v1/namespaces/" + namespaceOfSecrets + "/secrets"} {
				if r := ask(ctx, t, config, http.MethodGet, path); wantCode(r, http.StatusUnauthorized, http.StatusForbidden) != nil {
					t.Errorf("%s admits an agent to %s: %+v", at.name, path, r)
				}
			}
		}
	})
}

// TestPublicFaultsOfClusters repeats published attacks of a hostile cluster on each route and
// endpoint: it answers each request with a redirect to another host.
func TestPublicFaultsOfClusters(t *testing.T) {
	ctx := bounded(t, caseTimeout)
	elsewhere := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("%s %s with the headers %q reached another host", r.Method, r.URL, r.Header)
	}))
	defer elsewhere.Close()
	hostile := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		code, err := strconv.Atoi(r.URL.Query().Get("code"))
		if err != nil { // a probe of the gateway
			code = http.StatusFound
		}
		w.Header().Set("Location", elsewhere.URL+r.URL.Path)
		w.WriteHeader(code)
	}))
	if err := hostile.Listener.Close(); err != nil {
		t.Fatal(err)
	}
	var err error
	if hostile.Listener, err = net.Listen("tcp", net.JoinHostPort(shared.lab.HostAddr(shared.edge), "0")); err != nil {
		t.Fatal(err)
	}
	hostile.EnableHTTP2 = true
	hostile.StartTLS()
	defer hostile.Close()
	data := map[string][]byte{
		"endpoint": []byte(hostile.URL), "tls-server-name": []byte("example.com"), "token": []byte("e2e-secret-token"),
		"ca.crt": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: hostile.Certificate().Raw}),
	}
	startAgent(ctx, t, func() (lab.AgentOptions, error) { return shared.embedded.AgentOptions("redirects-tunnel", shared.edge) })
	for _, name := range []string{"redirects-direct", "redirects-tunnel"} {
		register(ctx, t, shared.embeddedHub, lab.SecretOptions{Name: name, Tunnel: name == "redirects-tunnel", Data: data})
		waitKnown(t, shared.embedded, name)
		for _, door := range doors() {
			a := &attack{t: t, config: shared.embedded.RESTConfig(door), base: gatewayPath + "/" + name + "/proxy"}
			for fault, headers := range map[string]string{
				// kubernetes/kubernetes#92914: redirects of upgrades were followed with the proxy's credential.
				"CVE-2020-8559": "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AQIDBAUGBwgJCgsMDQ4PEA==\r\n",
				// kubernetes/kubernetes#112513: clients were redirected, and sent their credential along.
				"CVE-2022-3172": "Connection: close\r\n",
			} {
				t.Run(fault+"/"+name+"/"+string(door), func(t *testing.T) {
					for _, code := range []string{"301", "302", "303", "307", "308"} {
						answer := a.send(t, "GET "+a.base+"/api/v1/namespaces/default/pods/e2e-nobody/exec?code="+code+" HTTP/1.1\r\nHost: x\r\n"+headers+"\r\n")
						if !strings.HasPrefix(answer, "HTTP/1.1 502") || strings.Contains(answer, elsewhere.URL) || !strings.Contains(answer, name) {
							t.Errorf("%s: %s", code, answer)
						}
					}
				})
			}
		}
	}
}

// attack sends raw requests as a user who may use the cluster.
type attack struct {
	t      *testing.T
	config *rest.Config
	base   string
}

// marker creates a ConfigMap that exists in the cluster alone, and returns its name.
func (a *attack) marker(ctx context.Context, c *lab.Cluster) string {
	a.t.Helper()
	created, err := c.Client().CoreV1().ConfigMaps("default").Create(ctx, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "e2e-marker-"}, Data: map[string]string{"a": "e2e-marker-value"},
	}, metav1.CreateOptions{})
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() {
		_ = c.Client().CoreV1().ConfigMaps("default").Delete(context.Background(), created.Name, metav1.DeleteOptions{}) // with the lab at the latest
	})
	return created.Name
}

// send writes requests on one connection over HTTP/1.1, and returns the answers.
func (a *attack) send(t *testing.T, requests ...string) string {
	t.Helper()
	host, err := url.Parse(a.config.Host)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(a.config.CertData, a.config.KeyData)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(a.config.CAData)
	conn, err := tls.Dial("tcp", host.Host, &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}, ServerName: a.config.ServerName, NextProtos: []string{"http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	reader := bufio.NewReader(conn)
	for _, request := range requests {
		if _, err := io.WriteString(conn, request); err != nil {
			return all.String() // the server has closed the connection
		}
		resp, err := http.ReadResponse(reader, nil)
		if err != nil {
			return all.String()
		}
		body, _ := io.ReadAll(resp.Body) // a body that ends early is part of the answer
		_, _ = fmt.Fprintf(&all, "HTTP/1.1 %s\n%v\n%s\n", resp.Status, resp.Header, body)
	}
	return all.String()
}

// whoami returns who the cluster says that the caller is, or the status of the answer.
func (a *attack) whoami(t *testing.T, headers ...string) string {
	t.Helper()
	const body = `{"apiVersion":"authentication.k8s.io/v1","kind":"SelfSubjectReview"}`
	request := "POST " + a.base + "/apis/authentication.k8s.io/v1/selfsubjectreviews HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nAccept: application/json\r\n"
	for _, header := range headers {
		request += header + "\r\n"
	}
	if !strings.Contains(request, "\r\nConnection:") {
		request += "Connection: close\r\n"
	}
	answer := a.send(t, request+fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(body), body))
	if _, after, ok := strings.Cut(answer, `"username":"`); ok {
		name, _, _ := strings.Cut(after, `"`)
		return name
	}
	status, _, _ := strings.Cut(answer, "\n")
	return status
}
