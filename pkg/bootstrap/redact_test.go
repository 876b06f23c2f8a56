// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"encoding/base64"
	"testing"
)

// TestRedactorKeeps shows what is not a secret: without it, a bundle is of no use.
func TestRedactorKeeps(t *testing.T) {
	t.Parallel()
	r := &redactor{}
	r.learnData("token", []byte("a-token-of-a-cluster"))
	certificate, _ := testPair(t)
	r.learnData("ca.crt", certificate)
	r.learnData("value", []byte("clusters: [{cluster: {server: 'https://edge-1.example.com'}, name: edge-1-of-the-team}]"))
	for _, text := range []string{
		`Ready=False CredentialRejected: the cluster rejected the gateway's credential (401): rotate it`,
		`I1127 10:00:00.000000 1 store.go:10] "Parsed the Secret" secret="cluster-gateway-system/edge-1" cluster="edge-1"`,
		`--token-file=/var/run/secrets/token --tunnel-advertise-address=tunnel.example.com:8132`,
		`cluster_gateway_credential_expiration_timestamp_seconds{cluster="edge-1"} 1.7e+09`,
		`GET https://edge-1.example.com:6443/api/v1/namespaces?limit=500&watch=true`,
		`/apis/cluster.core.oam.dev/v1alpha1/clustergateways/edge-1/proxy/api/v1/nodes%2Fa`,
		`edge-1-of-the-team`,
		string(certificate),
		"caBundle: " + base64.StdEncoding.EncodeToString(certificate),
	} {
		if got := r.text(text); got != text {
			t.Errorf("%s\nbecame\n%s", text, got)
		}
	}
}
