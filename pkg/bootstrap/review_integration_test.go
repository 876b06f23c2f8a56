// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build integration

package bootstrap_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/oam-dev/cluster-gateway/pkg/bootstrap"
	"github.com/oam-dev/cluster-gateway/test/lab"
	"github.com/oam-dev/cluster-gateway/test/lab/bootstraptest"
	"github.com/oam-dev/cluster-gateway/test/lab/labtest"
)

// front is an API server of the site as another server presents it: it has a certificate of its
// own, and change may answer requests instead of the API server.
func front(t *testing.T, change func(w http.ResponseWriter, r *http.Request) (answered bool)) (server *httptest.Server, ca []byte) {
	t.Helper()
	server = httptest.NewUnstartedServer(behind(t, site.Near, change))
	server.StartTLS()
	t.Cleanup(server.Close)
	return server, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
}

// behind returns a handler that sends to the API server of a cluster what change does not answer.
func behind(t *testing.T, c *lab.Cluster, change func(w http.ResponseWriter, r *http.Request) (answered bool)) http.Handler {
	t.Helper()
	target, err := url.Parse(c.Endpoint())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(c.CAPEM())
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}
	t.Cleanup(transport.CloseIdleConnections)
	proxy := &httputil.ReverseProxy{Transport: transport, Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !change(w, r) {
			proxy.ServeHTTP(w, r)
		}
	})
}

// refuse answers with a Status.
func refuse(w http.ResponseWriter, code int32, reason metav1.StatusReason) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(int(code))
	_ = json.NewEncoder(w).Encode(metav1.Status{ // the client notices
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure, Code: code, Reason: reason,
	})
}

// administrator is a credential for an API server behind a front, which passes no client
// certificate on.
func administrator(t *testing.T, c *lab.Cluster) *clientcmdapi.AuthInfo {
	t.Helper()
	token, err := c.ServiceAccountToken(t.Context(), "default", "administrator", "cluster-admin")
	if err != nil {
		t.Fatal(err)
	}
	return &clientcmdapi.AuthInfo{Token: token}
}

// TestRegisterWithoutReviews registers a cluster twice that does not say who its caller is and what
// the caller may do: because it is older than Kubernetes 1.28, or has no ClusterRole
// system:basic-user. Each time, it gets a token that works.
func TestRegisterWithoutReviews(t *testing.T) {
	for name, refusal := range map[string]struct {
		path   string
		code   int32
		reason metav1.StatusReason
	}{
		"Kubernetes 1.27":                  {"/apis/authentication.k8s.io/v1/", http.StatusNotFound, metav1.StatusReasonNotFound},
		"without system:basic-user":        {"/apis/authentication.k8s.io/v1/", http.StatusForbidden, metav1.StatusReasonForbidden},
		"without any review by the caller": {"/apis/auth", http.StatusForbidden, metav1.StatusReasonForbidden},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := site.Begin(t)
			server, ca := front(t, func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.HasPrefix(r.URL.Path, refusal.path) || !strings.Contains(r.URL.Path, "/selfsubject") {
					return false
				}
				refuse(w, refusal.code, refusal.reason)
				return true
			})
			kubeconfig := bootstraptest.Kubeconfig(t, site.Hub, server.URL, ca, administrator(t, site.Near))
			args := []string{"register", "near-1", "--cluster-kubeconfig", kubeconfig, "--route", "direct", "--endpoint", server.URL, "--wait", "0"}
			site.Must(ctx, t, args...)
			first := string(site.HubSecret(ctx, t, "near-1").Data["token"])
			site.Must(ctx, t, args...)
			second := string(site.HubSecret(ctx, t, "near-1").Data["token"])
			if first == second || second == "" {
				t.Error("registered again, the cluster has no new token")
			}
			site.Must(ctx, t, append(args, "--dry-run")...)
		})
	}
}

// TestRegisterAtManagementServer registers a cluster with the kubeconfig of a server in front of it
// that accepts only credentials of its own. The gateway could not use it, so nothing is registered,
// and what was applied to the cluster is removed.
func TestRegisterAtManagementServer(t *testing.T) {
	refuseToken := func(w http.ResponseWriter) { refuse(w, http.StatusUnauthorized, metav1.StatusReasonUnauthorized) }
	showLogin := func(w http.ResponseWriter) { _, _ = w.Write([]byte("<html>Who are you?</html>")) } // the client notices
	for name, answer := range map[string]func(w http.ResponseWriter){"401": refuseToken, "login page": showLogin} {
		t.Run(name, func(t *testing.T) {
			ctx := site.Begin(t)
			args := managed(t, answer)
			hub, near := labtest.Objects(ctx, t, site.Hub), labtest.Objects(ctx, t, site.Near)
			_, _, err := site.Run(ctx, bootstrap.Config{}, args...)
			if err == nil || !strings.Contains(err.Error(), "not a token of the cluster's ServiceAccounts") || !strings.Contains(err.Error(), "--route=tunnel") {
				t.Fatalf("it says %v", err)
			}
			labtest.Same(t, "the hub", hub, labtest.Objects(ctx, t, site.Hub))
			for name := range labtest.Objects(ctx, t, site.Near) {
				// The cluster deletes the objects that the namespace owns; here, nothing collects them.
				if _, before := near[name]; !before && !strings.Contains(name, "cluster-gateway-agent:") {
					t.Errorf("%s is left in the cluster", name)
				}
			}
		})
	}
	t.Run("registered already", func(t *testing.T) {
		ctx := site.Begin(t)
		site.Must(ctx, t, site.RegisterNear()...)
		hub, near := labtest.Objects(ctx, t, site.Hub), labtest.Objects(ctx, t, site.Near)
		if _, _, err := site.Run(ctx, bootstrap.Config{}, managed(t, refuseToken)...); err == nil || !strings.Contains(err.Error(), "The hub was not changed") {
			t.Errorf("it says %v", err)
		}
		labtest.Same(t, "the hub", hub, labtest.Objects(ctx, t, site.Hub))
		labtest.SameNames(t, "the cluster", near, labtest.Objects(ctx, t, site.Near))
	})
	t.Run("busy", func(t *testing.T) {
		ctx := site.Begin(t)
		hub := labtest.Objects(ctx, t, site.Hub)
		_, _, err := site.Run(ctx, bootstrap.Config{}, managed(t, func(w http.ResponseWriter) {
			refuse(w, http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable)
		})...)
		if err == nil || strings.Contains(err.Error(), "--route=tunnel") {
			t.Errorf("it says %v", err)
		}
		labtest.Same(t, "the hub", hub, labtest.Objects(ctx, t, site.Hub))
		if _, err := site.Near.Client().CoreV1().Namespaces().Get(ctx, bootstraptest.AgentNamespace, metav1.GetOptions{}); err != nil {
			t.Errorf("what was applied is gone, although the token may be good: %v", err)
		}
	})
}

// managed returns the arguments that register Near with the kubeconfig of a server in front of it.
// answer answers requests with a token of the gateway.
func managed(t *testing.T, answer func(w http.ResponseWriter)) []string {
	t.Helper()
	server, ca := front(t, func(w http.ResponseWriter, r *http.Request) bool {
		token := strings.Split(r.Header.Get("Authorization"), ".")
		if len(token) != 3 {
			return false
		}
		claims, err := base64.RawURLEncoding.DecodeString(token[1])
		if err != nil || !bytes.Contains(claims, []byte(bootstraptest.AgentNamespace)) {
			return false
		}
		answer(w)
		return true
	})
	kubeconfig := bootstraptest.Kubeconfig(t, site.Hub, server.URL, ca, administrator(t, site.Near))
	return []string{"register", "near-1", "--cluster-kubeconfig", kubeconfig, "--route", "direct", "--endpoint", server.URL, "--wait", "0"}
}
