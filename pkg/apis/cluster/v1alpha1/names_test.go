// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import "testing"

// Certificates, Secrets, kubeconfigs and RBAC rules that exist in clusters hold these strings, so
// none of them may change.
func TestNamesThatOthersStore(t *testing.T) {
	for got, want := range map[string]string{
		AgentOrganization:               "cluster.core.oam.dev:tunnel-agents",
		InvitationOrganization:          "cluster.core.oam.dev:tunnel-invitations",
		ProxyPath("edge-1"):             "/apis/cluster.core.oam.dev/v1alpha1/clustergateways/edge-1/proxy",
		DefaultNamespace:                "cluster-gateway-system",
		LabelCredentialType:             "cluster.core.oam.dev/cluster-credential-type",
		LabelEndpointType:               "cluster.core.oam.dev/cluster-endpoint-type",
		AnnotationInsecureSkipTLSVerify: "cluster.core.oam.dev/insecure-skip-tls-verify",
		SecretKeyEndpoint:               "endpoint", SecretKeyCA: "ca.crt", SecretKeyCAAlias: "ca", SecretKeyServerName: "tls-server-name",
		SecretKeyCert: "tls.crt", SecretKeyPrivateKey: "tls.key", SecretKeyToken: "token", SecretKeyExec: "exec", SecretKeyProxyURL: "proxy-url",
		SecretKeyMaintenanceToken: "maintenance-token", AnnotationCASource: "cluster.core.oam.dev/ca-source", CASourceCluster: "kube-root-ca.crt",
		AnnotationRotationRequest: "cluster.core.oam.dev/rotation-request", AnnotationRotatedTokens: "cluster.core.oam.dev/rotated-tokens",
		AnnotationRotatedCertificate: "cluster.core.oam.dev/rotated-certificate", AnnotationRotationFailure: "cluster.core.oam.dev/rotation-failure",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestValidateClusterName(t *testing.T) {
	for name, valid := range map[string]bool{
		"edge-1": true, "prod.example.com": true, "1": true,
		"": false, "Edge": false, "a/b": false, "..": false, "-a": false, "a_b": false,
	} {
		if faults := ValidateClusterName(name); (len(faults) == 0) != valid {
			t.Errorf("%q: faults %q, want valid %v", name, faults, valid)
		}
	}
}
