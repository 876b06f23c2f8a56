// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package manifests_test

import (
	"net/http"
	"strings"
	"testing"

	auditinternal "k8s.io/apiserver/pkg/apis/audit"
	"k8s.io/apiserver/pkg/audit/policy"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"sigs.k8s.io/yaml"

	"github.com/oam-dev/cluster-gateway/manifests"
)

// TestNothingInsecure checks that no manifest disables the verification of certificates or grants
// permissions by a wildcard.
func TestNothingInsecure(t *testing.T) {
	t.Parallel()
	for _, base := range []string{manifests.Gateway, manifests.KonnectivityAgent, manifests.KonnectivityInvitation, manifests.KonnectivityServer} {
		objects, err := manifests.Objects(base)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range objects {
			data, err := yaml.Marshal(o.Object)
			if err != nil {
				t.Fatal(err)
			}
			for _, bad := range []string{"insecure", "'*'", "cluster-admin"} {
				if strings.Contains(strings.ToLower(string(data)), bad) {
					t.Errorf("%s: %s %s contains %s", base, o.GetKind(), o.GetName(), bad)
				}
			}
		}
	}
}

// TestAuditPolicy checks what the policy writes, with the code of the API server: every request
// about a cluster, the refused ones included, and never a body.
func TestAuditPolicy(t *testing.T) {
	t.Parallel()
	text, err := manifests.AuditPolicy()
	if err != nil {
		t.Fatal(err)
	}
	loaded, err := policy.LoadPolicyFromBytes(text)
	if err != nil {
		t.Fatal(err)
	}
	evaluator := policy.NewPolicyRuleEvaluator(loaded)
	about := func(verb, subresource string) authorizer.AttributesRecord {
		return authorizer.AttributesRecord{
			User: &user.DefaultInfo{Name: "jane"}, Verb: verb, APIGroup: "cluster.core.oam.dev", APIVersion: "v1alpha1",
			Resource: "clustergateways", Subresource: subresource, Name: "edge", ResourceRequest: true,
		}
	}
	for verb, subresource := range map[string]string{"get": "proxy", "create": "proxy", "delete": "proxy", "list": "", "update": "health", "post": "agentcertificate"} {
		got := evaluator.EvaluatePolicyRule(about(verb, subresource))
		if got.Level != auditinternal.LevelMetadata || len(got.OmitStages) != 1 || got.OmitStages[0] != auditinternal.StageRequestReceived {
			t.Errorf("%s %s: %+v", verb, subresource, got)
		}
	}
	for _, path := range []string{"/healthz", "/livez/ping", "/readyz", "/metrics", "/apis", "/apis/cluster.core.oam.dev/v1alpha1", "/openapi/v3"} {
		request := authorizer.AttributesRecord{User: &user.DefaultInfo{Name: "jane"}, Verb: strings.ToLower(http.MethodGet), Path: path}
		if got := evaluator.EvaluatePolicyRule(request); got.Level != auditinternal.LevelNone {
			t.Errorf("%s: %+v", path, got)
		}
	}
	if got := evaluator.EvaluatePolicyRule(authorizer.AttributesRecord{User: &user.DefaultInfo{Name: "jane"}, Verb: "get", Path: "/debug/pprof/heap"}); got.Level != auditinternal.LevelMetadata {
		t.Errorf("/debug/pprof/heap: %+v", got)
	}
}
