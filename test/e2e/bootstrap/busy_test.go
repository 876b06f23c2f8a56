// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/oam-dev/cluster-gateway/pkg/bootstrap"
)

// faultyHub is a proxy in front of the hub. It forwards every request that fail does not answer. It
// returns a kubeconfig for it.
func faultyHub(t *testing.T, fail func(w http.ResponseWriter, req *http.Request) (answered bool)) string {
	t.Helper()
	config := shared.hub.RESTConfig()
	transport, err := rest.TransportFor(config)
	if err != nil {
		t.Fatal(err)
	}
	hub, err := url.Parse(config.Host)
	if err != nil {
		t.Fatal(err)
	}
	forward := &httputil.ReverseProxy{Transport: transport, Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(hub)
		r.Out.Header.Del("Authorization") // the transport's own message is good
	}}
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if !fail(w, req) {
			forward.ServeHTTP(w, req)
		}
	}))
	t.Cleanup(server.Close)
	return kubeconfig(t, server.URL, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), nil)
}

// asksVersion reports whether a request checks that a cluster responds.
func asksVersion(req *http.Request) bool { return strings.HasSuffix(req.URL.Path, "/proxy/version") }

func answerStatus(t *testing.T, w http.ResponseWriter, status metav1.Status) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(int(status.Code))
	status.TypeMeta, status.Status = metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, metav1.StatusFailure
	if err := json.NewEncoder(w).Encode(status); err != nil {
		t.Error(err)
	}
}

// temporary are responses of a hub, a gateway and a cluster that are up but cannot serve the
// request at the moment.
var temporary = []metav1.Status{
	{Code: http.StatusServiceUnavailable, Reason: metav1.StatusReasonServiceUnavailable, Message: "error trying to reach service"},
	{Code: http.StatusTooManyRequests, Reason: metav1.StatusReasonTooManyRequests, Message: "too many requests"},
	{Code: http.StatusGatewayTimeout, Reason: metav1.StatusReasonTimeout, Message: "its API server's answer took longer than 1m5s",
		Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: "Response"}}}},
	{Code: http.StatusTooManyRequests, Reason: metav1.StatusReasonTooManyRequests, Message: "already has 400 requests in flight",
		Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: "Request"}}}},
}

// TestUnregisterBusy checks that unregister does not treat a cluster as gone when the cluster, the
// gateway or the hub is only busy.
func TestUnregisterBusy(t *testing.T) {
	ctx := begin(t)
	must(ctx, t, nearbyArgs()...)
	hub, nearby := dump(ctx, t, shared.hub), dump(ctx, t, shared.nearby)

	var asked atomic.Int64
	always := faultyHub(t, func(w http.ResponseWriter, req *http.Request) bool {
		if !asksVersion(req) {
			return false
		}
		if n := int(asked.Add(1)); n%2 == 0 {
			answerStatus(t, w, temporary[n/2%len(temporary)])
		} else { // the agent has not yet reconnected to a gateway that has just started
			answerStatus(t, w, metav1.Status{Code: http.StatusServiceUnavailable, Reason: metav1.StatusReasonServiceUnavailable, Message: "no agent is connected",
				Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: "Tunnel"}}}})
		}
		return true
	})
	_, said, err := invoke(ctx, bootstrap.Config{}, "unregister", "near-1", "--kubeconfig", always)
	if err == nil || !strings.Contains(err.Error(), "--cluster-kubeconfig") || !strings.Contains(err.Error(), "--keep-agent") {
		t.Errorf("it fails with %v\n%s", err, said)
	}
	if asked.Load() < int64(2*len(temporary)) {
		t.Errorf("the cluster was asked only %d times", asked.Load())
	}
	same(t, "the hub", hub, dump(ctx, t, shared.hub))
	same(t, "the cluster", nearby, dump(ctx, t, shared.nearby))

	asked.Store(0)
	first := faultyHub(t, func(w http.ResponseWriter, req *http.Request) bool {
		if !asksVersion(req) || asked.Add(1) > 2 {
			return false
		}
		answerStatus(t, w, temporary[0])
		return true
	})
	_, said = must(ctx, t, "unregister", "near-1", "--kubeconfig", first)
	if !strings.Contains(said, "does not answer; retrying for") || !strings.Contains(said, "namespace "+agentNamespace+" deleted") {
		t.Errorf("it printed\n%s", said)
	}
}

// TestRotateNotUsed checks that rotate waits until the gateway uses the new token, and does not
// accept an answer to the previous one.
func TestRotateNotUsed(t *testing.T) {
	ctx := begin(t)
	must(ctx, t, nearbyArgs()...)
	stale := faultyHub(t, func(_ http.ResponseWriter, req *http.Request) bool {
		if req.Method == http.MethodPatch && strings.HasSuffix(req.URL.Path, "/secrets/near-1") { // nothing is stored
			_, _ = io.Copy(io.Discard, req.Body) // a server must not be read twice at a time
			req.Method, req.Body, req.ContentLength = http.MethodGet, http.NoBody, 0
		}
		return false
	})
	for _, form := range []struct {
		want string
		args []string
	}{
		{"still uses the previous token", []string{"--cluster-kubeconfig", shared.nearbyFile}},
		{"the gateway has not carried out the request", nil},
	} {
		_, said, err := invoke(ctx, bootstrap.Config{}, append([]string{"rotate", "near-1", "--kubeconfig", stale, "--wait", "3s"}, form.args...)...)
		if err == nil || !strings.Contains(err.Error(), form.want) {
			t.Errorf("%v: it fails with %v\n%s", form.args, err, said)
		}
	}
	must(ctx, t, "rotate", "near-1")
}

// TestNoAnswer checks the error when nothing answers within --wait.
func TestNoAnswer(t *testing.T) {
	ctx := begin(t)
	var silent atomic.Bool
	hub := faultyHub(t, func(_ http.ResponseWriter, req *http.Request) bool {
		if req.Method == http.MethodPatch && strings.HasSuffix(req.URL.Path, "/secrets/near-1") { // rotate has made its request
			silent.Store(true)
		}
		if !asksVersion(req) || !silent.Load() {
			return false
		}
		<-req.Context().Done()
		return true
	})
	silent.Store(true)
	_, _, err := invoke(ctx, bootstrap.Config{}, nearbyArgs("--kubeconfig", hub, "--wait", "1s")...)
	if err == nil || strings.Contains(err.Error(), "%!") || !strings.Contains(err.Error(), "the cluster is registered, but") ||
		!strings.Contains(err.Error(), "doctor near-1 --cluster-kubeconfig "+shared.nearbyFile) {
		t.Errorf("register fails with %v", err)
	}
	silent.Store(false)
	_, _, err = invoke(ctx, bootstrap.Config{}, "rotate", "near-1", "--kubeconfig", hub, "--wait", "6s")
	if err == nil || strings.Contains(err.Error(), "%!") || strings.Contains(err.Error(), "is registered") || strings.Contains(err.Error(), "--cluster-kubeconfig") ||
		!strings.Contains(err.Error(), "the credentials were replaced, but") || !strings.HasSuffix(err.Error(), "agent-bootstrap doctor near-1") {
		t.Errorf("rotate fails with %v", err)
	}
}
