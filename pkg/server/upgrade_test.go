// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/filters"
	"k8s.io/apiserver/pkg/endpoints/request"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/registry"
)

// verbs is an authorizer that allows some verbs on clustergateways/proxy of the cluster east to
// joe. It records what it is asked.
type verbs struct {
	allowed []string
	err     error
	asked   []string
}

func (v *verbs) Authorize(_ context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
	v.asked = append(v.asked, a.GetVerb())
	if !a.IsResourceRequest() || a.GetAPIGroup() != v1alpha1.GroupName || a.GetResource() != "clustergateways" || a.GetSubresource() != "proxy" ||
		a.GetName() != "east" || a.GetUser().GetName() != "joe" || a.IsReadOnly() != (a.GetVerb() == "get") {
		return authorizer.DecisionDeny, "", errors.New("wrong attributes")
	}
	if slices.Contains(v.allowed, a.GetVerb()) {
		return authorizer.DecisionAllow, "", nil
	}
	return authorizer.DecisionNoOpinion, "no rule", v.err
}

// TestUpgradeNeedsCreate sends requests through the handlers in the order of the server: request
// information, authorization by the generic API server, withProxy and withUpgradeAuthorization.
func TestUpgradeNeedsCreate(t *testing.T) {
	codecs := testCodecs(t)
	get, both := []string{"get"}, []string{"get", "create"}
	const denied = `clustergateways.cluster.core.oam.dev "east" is forbidden: User "joe" cannot create resource "clustergateways/proxy" in API group "cluster.core.oam.dev" at the cluster scope: ` +
		"an upgrade (exec, attach, port-forward) needs the verb create on clustergateways/proxy: no rule"
	for name, test := range map[string]struct {
		method     string
		connection []string
		allowed    []string
		asked      []string
		message    string
	}{
		"no upgrade":                   {allowed: get, asked: get},
		"another connection header":    {connection: []string{"keep-alive, close"}, allowed: get, asked: get},
		"upgrade":                      {connection: []string{"Upgrade"}, allowed: get, asked: both, message: denied},
		"upgrade, lower case":          {connection: []string{"upgrade"}, allowed: get, asked: both, message: denied},
		"upgrade, odd case":            {connection: []string{"uPgRaDe"}, allowed: get, asked: both, message: denied},
		"upgrade in a list":            {connection: []string{"keep-alive, Upgrade"}, allowed: get, asked: both, message: denied},
		"upgrade in a list, no spaces": {connection: []string{"x,upgrade,y"}, allowed: get, asked: both, message: denied},
		"upgrade in a second header":   {connection: []string{"keep-alive", "\tUpgrade "}, allowed: get, asked: both, message: denied},
		"what only contains upgrade":   {connection: []string{`"upgrade"`}, allowed: get, asked: both, message: denied},
		"upgrade, allowed":             {connection: []string{"Upgrade"}, allowed: both, asked: both},
		"upgrade of a POST":            {method: http.MethodPost, connection: []string{"Upgrade"}, allowed: both, asked: []string{"create"}},
		"CONNECT":                      {method: http.MethodConnect, allowed: []string{"", "get"}, asked: []string{"", "create"}, message: denied},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := &verbs{allowed: test.allowed}
			r := proxyRequest(t, test.method, test.connection...)
			w := httptest.NewRecorder()
			authorized(a, codecs).ServeHTTP(w, r)
			if !slices.Equal(a.asked, test.asked) {
				t.Errorf("the authorizer was asked for %q, want %q", a.asked, test.asked)
			}
			if test.message == "" {
				if w.Code != http.StatusOK || w.Body.String() != "proxied" {
					t.Errorf("%d %s", w.Code, w.Body)
				}
				return
			}
			var status metav1.Status
			if err := json.Unmarshal(w.Body.Bytes(), &status); err != nil {
				t.Fatalf("%s: %v", w.Body, err)
			}
			want := metav1.Status{
				TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Code: http.StatusForbidden,
				Reason: metav1.StatusReasonForbidden, Message: test.message,
			}
			status.Details = nil
			if w.Code != http.StatusForbidden || status != want {
				t.Errorf("%d %+v, want %+v", w.Code, status, want)
			}
		})
	}
}

// TestUpgradeAuthorizationFails: an authorizer that cannot decide refuses the upgrade.
func TestUpgradeAuthorizationFails(t *testing.T) {
	w := httptest.NewRecorder()
	authorized(&verbs{allowed: []string{"get"}, err: errors.New("no answer")}, testCodecs(t)).ServeHTTP(w, proxyRequest(t, "", "Upgrade"))
	if w.Code != http.StatusInternalServerError {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// authorized is the part of the server's chain that decides about an upgrade.
func authorized(a authorizer.UnconditionalAuthorizer, codecs serializer.CodecFactory) http.Handler {
	proxied := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("proxied")) })
	handler := withProxy(http.NotFoundHandler(), withUpgradeAuthorization(proxied, a, codecs))
	return filters.WithRequestInfo(filters.WithAuthorization(handler, a, codecs), &request.RequestInfoFactory{
		APIPrefixes: sets.NewString("api", "apis"), GrouplessAPIPrefixes: sets.NewString("api"),
	})
}

func proxyRequest(t *testing.T, method string, connection ...string) *http.Request {
	t.Helper()
	r := httptest.NewRequest(http.MethodGet, v1alpha1.BasePath+"east/proxy/api/v1/namespaces/default/pods/p/exec", nil)
	if method != "" {
		r.Method = method
	}
	for _, value := range connection {
		r.Header.Add("Connection", value)
	}
	return r.WithContext(request.WithUser(t.Context(), &user.DefaultInfo{Name: "joe"}))
}

func testCodecs(t *testing.T) serializer.CodecFactory {
	t.Helper()
	scheme, err := registry.NewScheme()
	if err != nil {
		t.Fatal(err)
	}
	return serializer.NewCodecFactory(scheme)
}

var _ runtime.NegotiatedSerializer = serializer.CodecFactory{}

// TestHubAuthorizer shows that the error of a hub that does not answer names the hub, and that it
// is not a decision.
func TestHubAuthorizer(t *testing.T) {
	t.Parallel()
	gone := errors.New("connection refused")
	for err, want := range map[error]string{gone: "the gateway cannot ask the hub whether you may do this: connection refused", nil: "<nil>"} {
		asked := authorizer.AuthorizerFunc(func(context.Context, authorizer.Attributes) (authorizer.Decision, string, error) {
			return authorizer.DecisionNoOpinion, "why", err
		})
		decision, reason, got := hubAuthorizer{asked}.Authorize(t.Context(), authorizer.AttributesRecord{})
		if decision != authorizer.DecisionNoOpinion || reason != "why" || fmt.Sprint(got) != want || !errors.Is(got, err) {
			t.Errorf("%v: %v, %q, %v", err, decision, reason, got)
		}
	}
}
