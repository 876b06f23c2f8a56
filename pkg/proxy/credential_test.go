// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/dialer/dialertest"
	"github.com/oam-dev/cluster-gateway/pkg/execplugin"
)

// whoami answers with the credentials of the request.
func whoami(w http.ResponseWriter, r *http.Request) {
	name := "nobody"
	if len(r.TLS.PeerCertificates) > 0 {
		name = r.TLS.PeerCertificates[0].Subject.CommonName
	}
	_, _ = fmt.Fprintf(w, "%s|%s", name, strings.Join(r.Header["Authorization"], "|"))
}

func askForCertificates(s *httptest.Server) {
	s.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
}

func pemOf(t testing.TB, pair tls.Certificate) (cert, key string) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

func ofType(secret *corev1.Secret, credential v1alpha1.CredentialType) *corev1.Secret {
	secret.Labels[v1alpha1.LabelCredentialType] = string(credential)
	return secret
}

func TestCredentialsReachTheCluster(t *testing.T) {
	s := newAPIServer(t, whoami, askForCertificates)
	g := newGateway(t, nil)
	cert, key := pemOf(t, dialertest.NewCA(t, "clients").Client(t, "the-gateway"))
	g.set(s.secret("token"))
	g.set(ofType(s.secret("x509", "tls.crt", cert, "tls.key", key, "token", ""), v1alpha1.CredentialTypeX509))
	for name, want := range map[string]string{"token": "nobody|Bearer " + testToken, "x509": "the-gateway|"} {
		_, body := g.get(name, "/", "Authorization", "Bearer of-the-caller")
		diff(t, name, want, body)
	}
}

// plugin writes a credential plugin, and returns its ExecConfig as JSON. The script prints the file
// "answer" next to it, and adds a line to the file "runs".
func plugin(t testing.TB) (dir, config string) {
	t.Helper()
	dir = t.TempDir()
	script := filepath.Join(dir, "plugin")
	text := fmt.Sprintf("#!/bin/sh\necho run >> %[1]s/runs\nif [ -e %[1]s/hang ]; then read x < %[1]s/hang; fi\nif [ -e %[1]s/fail ]; then exit 3; fi\ncat %[1]s/answer\n", dir)
	if err := os.WriteFile(script, []byte(text), 0o700); err != nil { //nolint:gosec // it is a program
		t.Fatal(err)
	}
	return dir, fmt.Sprintf(`{"apiVersion":"client.authentication.k8s.io/v1","command":%q,"interactiveMode":"Never"}`, script)
}

func answer(t testing.TB, dir string, status map[string]any) {
	t.Helper()
	text, err := json.Marshal(map[string]any{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "next"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, "next"), filepath.Join(dir, "answer")); err != nil {
		t.Fatal(err)
	}
}

func runs(t testing.TB, dir string) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "runs"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return strings.Count(string(text), "run")
}

func (g *gateway) setPlugin(s *apiServer, name, dir, config string) {
	g.parse.ExecCredentialDir = dir
	c := g.set(ofType(s.secret(name, "exec", config, "token", ""), v1alpha1.CredentialTypeDynamic))
	if c.Err() != nil {
		g.t.Fatal(c.Err())
	}
}

func TestPluginToken(t *testing.T) {
	s := newAPIServer(t, whoami, askForCertificates)
	g := newGateway(t, nil)
	dir, config := plugin(t)
	answer(t, dir, map[string]any{"token": "first"})
	g.setPlugin(s, "a", dir, config)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, body := g.get("a", "/"); body != "nobody|Bearer first" {
				t.Error(body)
			}
		})
	}
	wg.Wait()
	if n := runs(t, dir); n != 1 {
		t.Errorf("%d runs of the plugin for one credential", n)
	}
	conn, br, resp := g.upgrade("a", "/") // over the other transport: whoami refuses to upgrade
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 19))
	diff(t, "upgrade", "nobody|Bearer first", string(body))
	_, _ = conn, br
}

// The next request renews an expired credential. A token needs no new connection.
func TestPluginExpiry(t *testing.T) {
	s := newAPIServer(t, whoami, askForCertificates)
	g := newGateway(t, nil)
	dir, config := plugin(t)
	expiry := time.Now().Add(time.Second).Truncate(time.Second).Add(time.Second)
	answer(t, dir, map[string]any{"token": "first", "expirationTimestamp": expiry.UTC().Format(time.RFC3339)})
	g.setPlugin(s, "a", dir, config)
	_, body := g.get("a", "/")
	diff(t, "before", "nobody|Bearer first", body)
	answer(t, dir, map[string]any{"token": "second"})
	time.Sleep(time.Until(expiry) + 10*time.Millisecond) // the plugin's clock is the real one
	// On a slow machine, the first credential had expired when the plugin returned it, and is then
	// used for another second.
	eventually(t, "the second credential is used", func() bool { _, body := g.get("a", "/"); return body == "nobody|Bearer second" })
	if n := s.accepted.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

// After a 401, the plugin runs again for the next request. A new certificate is presented on a new
// connection.
func TestPluginCertificate(t *testing.T) {
	ca := dialertest.NewCA(t, "clients")
	var expired sync.Map
	s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		if _, is := expired.Load(r.TLS.PeerCertificates[0].Subject.CommonName); is {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		whoami(w, r)
	}, askForCertificates)
	g := newGateway(t, nil)
	dir, config := plugin(t)
	give := func(name string) {
		cert, key := pemOf(t, ca.Client(t, name))
		answer(t, dir, map[string]any{"clientCertificateData": cert, "clientKeyData": key})
	}
	give("first")
	g.setPlugin(s, "a", dir, config)
	_, body := g.get("a", "/")
	diff(t, "before", "first|", body)
	give("second")
	expired.Store("first", true)
	// The answer is a 502 either way: because of the 401, or because the rotation closes the
	// connection.
	if resp, body := g.get("a", "/"); resp.StatusCode != 502 {
		t.Errorf("%s: %s", resp.Status, body)
	}
	eventually(t, "the new certificate is used", func() bool {
		_, body := g.get("a", "/")
		return body == "second|"
	})
}

// A Secret that selects a plugin by its name gets the credential of the plugin. A Secret that sets
// the environment of a program gets nothing, and the program does not run.
func TestPluginByName(t *testing.T) {
	s := newAPIServer(t, whoami)
	g := newGateway(t, nil)
	dir, config := plugin(t)
	answer(t, dir, map[string]any{"token": "of-the-plugin"})
	plugins, err := execplugin.Parse([]byte("plugins: [{name: test, command: " + dir + "/plugin}]"))
	if err != nil {
		t.Fatal(err)
	}
	g.parse.ExecPlugins = plugins
	g.setPlugin(s, "a", dir, `{"plugin":"test"}`)
	_, body := g.get("a", "/")
	diff(t, "by name", "nobody|Bearer of-the-plugin", body)

	loot := filepath.Join(t.TempDir(), "loot")
	env := fmt.Sprintf(`{"env":[{"name":"BASH_ENV","value":"$(id > %s)"}],`, loot)
	g.set(ofType(s.secret("b", "exec", env+config[1:], "token", ""), v1alpha1.CredentialTypeDynamic))
	if resp, body := g.get("b", "/"); resp.StatusCode != 503 || !strings.Contains(body, "env is not allowed") {
		t.Errorf("%s: %s", resp.Status, body)
	}
	if n := runs(t, dir); n != 1 {
		t.Errorf("%d runs", n)
	}
	if _, err := os.Stat(loot); !os.IsNotExist(err) {
		t.Error("the environment of a Secret ran a program")
	}
}

// A plugin that runs when its cluster is deleted is ended.
func TestPluginEndsWithItsCluster(t *testing.T) {
	s := newAPIServer(t, whoami)
	g := newGateway(t, nil)
	dir, config := plugin(t)
	if err := mkfifo(filepath.Join(dir, "hang")); err != nil {
		t.Skip(err)
	}
	g.setPlugin(s, "a", dir, config)
	ended := make(chan int)
	go func() { resp, _ := g.get("a", "/"); ended <- resp.StatusCode }()
	eventually(t, "the plugin runs", func() bool { return runs(t, dir) == 1 })
	g.delete("a")
	within(t, maxWait, "the end of the request", func() {
		if code := <-ended; code != 404 {
			t.Errorf("%d", code)
		}
	})
}

func TestPluginFails(t *testing.T) {
	s := newAPIServer(t, whoami)
	g := newGateway(t, nil)
	dir, config := plugin(t)
	g.setPlugin(s, "a", dir, config)
	if err := os.WriteFile(filepath.Join(dir, "fail"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, got := g.status("a", "/")
	diff(t, "Status", failure(502, StatusReasonBadGateway, "a", CauseCredential, 0,
		`cannot get a credential for cluster "a": the credential plugin failed: `+dir+`/plugin failed with exit code 3`), got)
	if err := os.Remove(filepath.Join(dir, "fail")); err != nil {
		t.Fatal(err)
	}
	answer(t, dir, map[string]any{"token": "now"})
	eventually(t, "requests succeed when the plugin does", func() bool { _, body := g.get("a", "/"); return body == "nobody|Bearer now" })
}

// A plugin that hangs delays its own cluster's requests until their deadline, and no others.
// Requests that have ended leave no goroutine waiting for it.
func TestPluginHangs(t *testing.T) {
	s := newAPIServer(t, whoami)
	g := newGateway(t, func(c *Config) { c.RequestTimeout = 2 * time.Second })
	dir, config := plugin(t)
	hang := filepath.Join(dir, "hang")
	if err := mkfifo(hang); err != nil {
		t.Skip(err)
	}
	answer(t, dir, map[string]any{"token": "late"})
	g.setPlugin(s, "stuck", dir, config)
	g.set(s.secret("b"))
	var wg sync.WaitGroup
	for range 30 {
		wg.Go(func() {
			if resp, body := g.get("stuck", "/"); resp.StatusCode != 504 {
				t.Errorf("%s: %s", resp.Status, body)
			}
		})
	}
	within(t, maxWait, "another cluster's request", func() {
		if _, body := g.get("b", "/"); body != "nobody|Bearer "+testToken {
			t.Error(body)
		}
	})
	within(t, maxWait, "the end of the stuck requests", wg.Wait)
	f, err := os.OpenFile(hang, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = f.WriteString("go on\n")
	_ = f.Close()
	_ = os.Remove(hang)
	eventually(t, "requests succeed when the plugin does", func() bool { _, body := g.get("stuck", "/"); return body == "nobody|Bearer late" })
	if n := runs(t, dir); n != 1 {
		t.Errorf("%d runs of the plugin", n)
	}
}
