// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package client_test

import (
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/oam-dev/cluster-gateway/pkg/client"
)

const prefix = "/apis/cluster.core.oam.dev/v1alpha1/clustergateways/edge-1/proxy"

// hub returns a server that records requests.
func hub(t *testing.T) (*rest.Config, <-chan *http.Request) {
	t.Helper()
	requests := make(chan *http.Request, 1)
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests <- r
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"kind":"ConfigMap","apiVersion":"v1"}`))
	}))
	t.Cleanup(server.Close)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	return &rest.Config{Host: server.URL, BearerToken: "mine", TLSClientConfig: rest.TLSClientConfig{CAData: ca}}, requests
}

func TestForCluster(t *testing.T) {
	for _, path := range []string{"", "/", "/clusters/c-1"} {
		config, requests := hub(t)
		config.Host += path
		before := config.Host
		config, err := client.ForCluster(config, "edge-1")
		if err != nil {
			t.Fatal(err)
		}
		clientset, err := kubernetes.NewForConfig(config)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := clientset.CoreV1().ConfigMaps("default").Get(t.Context(), "x", metav1.GetOptions{}); err != nil {
			t.Fatal(err)
		}
		r := <-requests
		if want := strings.TrimSuffix(path, "/") + prefix + "/api/v1/namespaces/default/configmaps/x"; r.URL.Path != want {
			t.Errorf("hub at %s: asked for %s, want %s", before, r.URL.Path, want)
		}
		if got := r.Header.Get("Authorization"); got != "Bearer mine" {
			t.Errorf("Authorization is %q", got)
		}
	}
}

func TestForClusterRefusesNames(t *testing.T) {
	for _, name := range []string{"", "a/b", "..", "Edge", "a b", "a%2fb"} {
		if _, err := client.ForCluster(&rest.Config{Host: "https://hub"}, name); err == nil {
			t.Errorf("%q was taken for a cluster's name", name)
		}
		if _, err := client.NewRoundTripper(&rest.Config{Host: "https://hub"}, name); err == nil {
			t.Errorf("%q was taken for a cluster's name", name)
		}
	}
}

func TestRoundTripper(t *testing.T) {
	config, requests := hub(t)
	rt, err := client.NewRoundTripper(config, "edge-1")
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://edge-1.invalid:123/api/v1/a%2Fb?x=%2F;y", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	r := <-requests
	if want := prefix + "/api/v1/a%2Fb?x=%2F;y"; r.RequestURI != want {
		t.Errorf("asked for %s, want %s", r.RequestURI, want)
	}
	if want := strings.TrimPrefix(config.Host, "https://"); r.Host != want {
		t.Errorf("the Host header is %s, want %s", r.Host, want)
	}
	if req.URL.Host != "edge-1.invalid:123" {
		t.Error("the caller's request was changed")
	}
}

// Clients that import the package must not import a server with it.
func TestImports(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	ours := []string{"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1", "github.com/oam-dev/cluster-gateway/pkg/client"}
	for _, dep := range strings.Fields(string(out)) {
		if strings.HasPrefix(dep, "k8s.io/apiserver") || strings.HasPrefix(dep, "github.com/oam-dev/cluster-gateway/") && !slices.Contains(ours, dep) {
			t.Errorf("it imports %s", dep)
		}
	}
}
