// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// TestAgentNamespaceIsProtected shows what users of a cluster that was registered with limited
// access may send to the namespace of the agent, whatever the cluster would answer.
func TestAgentNamespaceIsProtected(t *testing.T) {
	var received atomic.Int64
	s := newAPIServer(t, func(w http.ResponseWriter, _ *http.Request) { received.Add(1); w.WriteHeader(http.StatusOK) })
	g := newGateway(t, nil)
	for name, access := range map[string]string{"limited": "view", "impersonating": "impersonate", "unknown": "", "admin": "admin", "by-role": "cluster-admin"} {
		secret := s.secret(name)
		secret.Labels[v1alpha1.LabelManagedBy] = v1alpha1.ManagedByAgentBootstrap
		secret.Annotations[v1alpha1.AnnotationAccess] = access
		g.set(secret)
	}
	g.set(s.secret("by-hand")) // not registered by agent-bootstrap: nothing is known about its accounts

	const ns = "/api/v1/namespaces/cluster-gateway-agent"
	for _, test := range []struct {
		method, path string
		refused      bool
	}{
		{http.MethodPost, ns + "/serviceaccounts/cluster-gateway/token", true},
		{http.MethodPost, ns + "/serviceaccounts/cluster-gateway-maintenance/token", true},
		{http.MethodGet, ns + "/secrets", true},
		{http.MethodGet, ns + "/secrets?watch=true", true},
		{http.MethodGet, ns + "/secrets/konnectivity-agent", true},
		{http.MethodGet, "/api/v1/watch/namespaces/cluster-gateway-agent/secrets", true},
		{http.MethodPost, ns + "/pods", true},
		{http.MethodPost, ns + "/pods/konnectivity-agent-0/exec?command=sh", true},
		{http.MethodPost, ns + "/pods/konnectivity-agent-0/eviction", true},
		{http.MethodGet, ns + "/pods/konnectivity-agent-0/exec?command=sh", true},
		{http.MethodGet, ns + "/pods/konnectivity-agent-0/proxy/", true},
		{http.MethodGet, ns + "/services/x/proxy/", true},
		{http.MethodPatch, "/apis/apps/v1/namespaces/cluster-gateway-agent/deployments/konnectivity-agent", true},
		{http.MethodPut, "/apis/apps/v1/namespaces/cluster-gateway-agent/deployments/konnectivity-agent/scale", true},
		{http.MethodPost, "/apis/rbac.authorization.k8s.io/v1/namespaces/cluster-gateway-agent/rolebindings", true},
		{http.MethodDelete, ns, true},
		{http.MethodDelete, ns + "/configmaps", true},
		// Other spellings, which some server could understand like this.
		{http.MethodGet, "/api/v1/namespaces//cluster-gateway-agent/secrets", true},
		{http.MethodGet, "//api/v1/namespaces/cluster-gateway-agent/secrets", true},
		{http.MethodGet, "/api/v1/namespaces/./cluster-gateway-agent/pods", true},
		{http.MethodGet, "/api/v1/namespaces/default/../cluster-gateway-agent/secrets", true},
		{http.MethodGet, "/api/v1/namespaces/cluster%2Dgateway-agent/secrets", true},
		{http.MethodGet, "/api/v1/namespaces/cluster%252Dgateway-agent/secrets", true},
		{http.MethodGet, "/api/v1/namespaces%2Fcluster-gateway-agent/secrets", true},
		{http.MethodGet, "/api/v1/namespaces;x/cluster-gateway-agent/secrets", true},
		{http.MethodGet, `/api/v1/namespaces\cluster-gateway-agent/secrets`, true},
		{http.MethodGet, "/prefix/api/v1/namespaces/cluster-gateway-agent/secrets", true},
		// To look is allowed.
		{http.MethodGet, ns, false},
		{http.MethodGet, ns + "/pods", false},
		{http.MethodGet, ns + "/pods?watch=1", false},
		{http.MethodGet, ns + "/pods/konnectivity-agent-0/log?follow=true", false},
		{http.MethodGet, "/apis/apps/v1/namespaces/cluster-gateway-agent/deployments/konnectivity-agent", false},
		// Nothing else is touched.
		{http.MethodGet, "/api/v1/secrets", false},
		{http.MethodPost, "/api/v1/namespaces/default/configmaps", false},
		{http.MethodPut, "/api/v1/namespaces/default/configmaps/cluster-gateway-agent", false},
		{http.MethodPost, "/api/v1/namespaces/cluster-gateway-agents/pods", false},
		{http.MethodPost, "/api/v1/namespaces/default/services/100%25/proxy/x", false},
	} {
		for name, limited := range map[string]bool{"limited": true, "impersonating": true, "unknown": true, "admin": false, "by-role": false, "by-hand": false} {
			before := received.Load()
			resp, body := g.do(test.method, name, test.path, nil)
			if want := limited && test.refused; want {
				if resp.StatusCode != http.StatusForbidden || received.Load() != before || !strings.Contains(body, "cluster-gateway-agent") {
					t.Errorf("%s %s on %s: got %d, and %d requests reached the cluster: %s", test.method, test.path, name, resp.StatusCode, received.Load()-before, body)
				}
			} else if resp.StatusCode != http.StatusOK || received.Load() != before+1 {
				t.Errorf("%s %s on %s: got %d: %s", test.method, test.path, name, resp.StatusCode, body)
			}
		}
	}
	// Another access counts at once, although the transport stays.
	raised := s.secret("limited")
	raised.Labels[v1alpha1.LabelManagedBy], raised.Annotations[v1alpha1.AnnotationAccess] = v1alpha1.ManagedByAgentBootstrap, "admin"
	g.set(raised)
	if resp, body := g.get("limited", ns+"/secrets"); resp.StatusCode != http.StatusOK {
		t.Errorf("after the access was raised: got %d: %s", resp.StatusCode, body)
	}
	raised.Annotations[v1alpha1.AnnotationAccess] = "view"
	g.set(raised)
	if resp, _ := g.get("limited", ns+"/secrets"); resp.StatusCode != http.StatusForbidden {
		t.Errorf("after the access was limited: got %d", resp.StatusCode)
	}
	// An upgrade is refused whatever its subresource is.
	resp, body := g.get("limited", ns+"/pods/konnectivity-agent-0/log", "Connection", "Upgrade", "Upgrade", "websocket")
	if resp.ProtoMajor == 1 && resp.StatusCode != http.StatusForbidden {
		t.Errorf("an upgrade: got %d: %s", resp.StatusCode, body)
	}
}
