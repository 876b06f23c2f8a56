// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

const maintenanceToken = "maintenance-token-0123456789"

// TestCredentialsSeparate shows the condition that says whether a cluster has two credentials.
func TestCredentialsSeparate(t *testing.T) {
	for _, test := range []struct {
		name, managedBy, access, token string
		status, reason, message        string
		allows                         bool
	}{
		{name: "two", managedBy: "agent-bootstrap", access: "view", token: maintenanceToken, status: "True", reason: "TwoCredentials"},
		{
			name: "one, and users may do everything", managedBy: "agent-bootstrap", access: "admin", allows: true,
			status: "False", reason: "SharedCredential", message: "agent-bootstrap rotate east",
		},
		{
			name: "one, and users may read", managedBy: "agent-bootstrap", access: "view",
			status: "False", reason: "SharedCredential", message: `agent-bootstrap register east --cluster-kubeconfig FILE --access "view"`,
		},
		{name: "one that cannot be sent", managedBy: "agent-bootstrap", access: "view", token: "two\nlines", status: "False", reason: "SharedCredential"},
		{name: "registered by hand", allows: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			secret := tokenSecret(data{v1alpha1.SecretKeyMaintenanceToken: test.token})
			secret.Labels[v1alpha1.LabelManagedBy] = test.managedBy
			secret.Annotations = map[string]string{v1alpha1.AnnotationAccess: test.access}
			c := Parse(secret, ParseOptions{})
			if c.Err() != nil {
				t.Fatal(c.Err())
			}
			if c.AllowsAgentNamespace() != test.allows {
				t.Errorf("allows the agent's namespace: %v", c.AllowsAgentNamespace())
			}
			condition := meta.FindStatusCondition(c.ClusterGateway(secret).Status.Conditions, v1alpha1.ConditionCredentialsSeparate)
			if condition == nil {
				if test.status != "" {
					t.Error("there is no condition")
				}
				return
			}
			if string(condition.Status) != test.status || condition.Reason != test.reason || !strings.Contains(condition.Message, test.message) {
				t.Errorf("got %s, %s: %s", condition.Status, condition.Reason, condition.Message)
			}
		})
	}
}

// TestMaintenanceTokenIsHidden shows that the token is not in anything that is served or printed,
// and that a transport does not depend on it.
func TestMaintenanceTokenIsHidden(t *testing.T) {
	secret := tokenSecret(data{v1alpha1.SecretKeyMaintenanceToken: maintenanceToken})
	secret.Annotations = map[string]string{"copy": "a " + maintenanceToken}
	c := Parse(secret, ParseOptions{})
	served, err := json.Marshal(c.ClusterGateway(secret))
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{string(served), fmt.Sprintf("%v %+v %#v %s", c, c, *c, c.Maintenance())} {
		if strings.Contains(text, maintenanceToken) {
			t.Errorf("the token is in %s", text)
		}
	}
	if c.Fingerprint() != Parse(tokenSecret(nil), ParseOptions{}).Fingerprint() {
		t.Error("transports to the cluster depend on the token")
	}
}

// TestParseRotationRequest shows which requests ask for something.
func TestParseRotationRequest(t *testing.T) {
	for _, test := range []struct {
		name                       string
		request, tokens, cert      string
		wantsTokens, wantsCert, no bool
	}{
		{name: "none"},
		{name: "not JSON", request: "yes"},
		{name: "too long", request: `{"id":"` + strings.Repeat("a", 2000) + `"}`},
		{name: "a negative lifetime", request: `{"id":"1","tokenLifetime":"-1s"}`},
		{name: "a lifetime of centuries", request: `{"id":"1","certificateLifetime":"2000000h"}`},
		{name: "tokens", request: `{"id":"1"}`, wantsTokens: true},
		{name: "all", request: `{"id":"1","certificate":true,"tokenLifetime":"1h0m0s"}`, wantsTokens: true, wantsCert: true},
		{name: "the previous one is done", request: `{"id":"2","certificate":true}`, tokens: "1", cert: "1", wantsTokens: true, wantsCert: true},
		{name: "tokens are done", request: `{"id":"1","certificate":true}`, tokens: "1", wantsCert: true},
		{name: "done", request: `{"id":"1","certificate":true}`, tokens: "1", cert: "1"},
		{name: "no agent", request: `{"id":"1","certificate":true}`, tokens: "1", cert: "1" + RotatedNothing, no: true},
	} {
		r := ParseRotationRequest(map[string]string{
			v1alpha1.AnnotationRotationRequest: test.request, v1alpha1.AnnotationRotatedTokens: test.tokens, v1alpha1.AnnotationRotatedCertificate: test.cert,
			v1alpha1.AnnotationRotationFailure: "0 of an earlier one",
		})
		if r.WantsTokens() != test.wantsTokens || r.WantsCertificate() != test.wantsCert || r.FoundNoAgent() != test.no || r.Failure() != "" {
			t.Errorf("%s: got %+v", test.name, r)
		}
	}
	r := ParseRotationRequest(map[string]string{v1alpha1.AnnotationRotationRequest: `{"id":"1","tokenLifetime":"1h0m0s"}`, v1alpha1.AnnotationRotationFailure: "1 it is forbidden"})
	if r.Failure() != "it is forbidden" || r.TokenLifetime.Duration != time.Hour {
		t.Errorf("got %+v, %q", r, r.Failure())
	}
}
