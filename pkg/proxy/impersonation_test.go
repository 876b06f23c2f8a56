// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/oam-dev/cluster-gateway/pkg/identity"
)

// TestImpersonationRefused shows that a cluster's refusal of the impersonation is explained to the
// caller, in the encoding that they asked for, and that every other refusal stays as it is. The
// answers are made by kube-apiserver's own code.
func TestImpersonationRefused(t *testing.T) {
	codecs := serializer.NewCodecFactory(scheme.Scheme)
	verbs := map[string]string{
		"/api/v1/pods": "impersonate", "/api/v1/nodes": "impersonate:user-info", "/api/v1/services": "impersonate-on:user-info:list",
		// These do not refuse the impersonation.
		"/api/v1/secrets": "list", "/api/v1/namespaces/a/pods/b/proxy/": "impersonate", "/api/v1/configmaps": "impersonated",
	}
	s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		account := &user.DefaultInfo{Name: "system:serviceaccount:cluster-gateway-agent:gateway"}
		responsewriters.Forbidden(authorizer.AttributesRecord{User: account, Verb: verbs[r.URL.Path], Resource: "users", Name: "jane", ResourceRequest: true}, w, r, "", codecs)
	})
	g := newGateway(t, func(c *Config) { c.Identities = identity.NewResolver(identity.Config{HubName: "prod"}) })
	g.set(seesIdentity(s.secret("edge"), "impersonate", ""))
	g.set(s.secret("plain"))

	for path, verb := range verbs {
		explained := strings.HasPrefix(verb, "impersonate") && verb != "impersonated" && !strings.HasSuffix(path, "/proxy/")
		for _, accept := range []string{"application/json", "application/vnd.kubernetes.protobuf, application/json"} {
			resp, body := g.get("edge", path, userHeader, callerJane, "Accept", accept)
			wantCode(t, resp, body, http.StatusForbidden)
			status, ok := parseStatus([]byte(body))
			if !ok {
				t.Fatalf("%s as %s: %q is no Status", path, accept, body)
			}
			if !strings.Contains(status.Message, `User "system:serviceaccount:cluster-gateway-agent:gateway" cannot `+verb+` resource "users"`) {
				t.Errorf("%s: the cluster's text is not in %q", path, status.Message)
			}
			if got := strings.Contains(status.Message, `cluster "edge" does not let the gateway's account act as you`) && strings.Contains(status.Message, "--impersonate-user"); got != explained {
				t.Errorf("%s: explained: %v, want %v: %s", path, got, explained, status.Message)
			}
			if got := resp.Header.Get("Content-Type"); strings.HasPrefix(accept, "application/vnd") != strings.Contains(got, "protobuf") {
				t.Errorf("%s as %s: it is %s", path, accept, got)
			}
		}
	}
	// The gateway is not asked to act as the caller.
	resp, body := g.get("plain", "/api/v1/pods", userHeader, callerJane)
	wantCode(t, resp, body, http.StatusForbidden)
	var status metav1.Status
	if err := json.Unmarshal([]byte(body), &status); err != nil || strings.Contains(status.Message, "act as you") {
		t.Errorf("%v: %s", err, body)
	}
}

// TestLargeRefusal shows that a refusal that is larger than what is looked at arrives whole.
func TestLargeRefusal(t *testing.T) {
	text := strings.Repeat("cannot impersonate ", 4*maxRefusal/19)
	s := newAPIServer(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusForbidden)
		_, _ = w.Write([]byte(text))
	})
	g := newGateway(t, nil)
	g.set(seesIdentity(s.secret("edge"), "impersonate", ""))
	resp, body := g.get("edge", "/api", userHeader, callerJane)
	wantCode(t, resp, body, http.StatusForbidden)
	if body != text {
		t.Errorf("%d of %d bytes arrived", len(body), len(text))
	}
}
