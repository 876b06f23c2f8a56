// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"encoding/json"
	"net/url"
	"testing"

	"k8s.io/apimachinery/pkg/runtime"
)

func newScheme(t *testing.T) *runtime.Scheme {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	return scheme
}

// Clients look a type's kind up by its Go type, and fail when there is more than one.
func TestEveryTypeHasOneKind(t *testing.T) {
	scheme := newScheme(t)
	for kind, object := range map[string]runtime.Object{
		"ClusterGateway": &ClusterGateway{}, "ClusterGatewayList": &ClusterGatewayList{}, "ClusterGatewayProxyOptions": &ClusterGatewayProxyOptions{},
	} {
		kinds, _, err := scheme.ObjectKinds(object)
		if err != nil || len(kinds) != 1 || kinds[0] != SchemeGroupVersion.WithKind(kind) {
			t.Errorf("%s: %v, %v", kind, kinds, err)
		}
	}
}

func TestFieldLabels(t *testing.T) {
	scheme := newScheme(t)
	for label, ok := range map[string]bool{
		"metadata.name": true, "spec.access.endpoint.type": true, "spec.access.credential.type": true,
		"metadata.namespace": false, "spec.provider": false, "": false,
	} {
		if _, _, err := scheme.ConvertFieldLabel(SchemeGroupVersion.WithKind("ClusterGateway"), label, "x"); (err == nil) != ok {
			t.Errorf("%q: %v", label, err)
		}
	}
}

func TestProxyOptionsFromQuery(t *testing.T) {
	options := &ClusterGatewayProxyOptions{}
	query := url.Values{"path": {"api/v1"}, "watch": {"true"}, "dryRun": {"All"}}
	if err := runtime.NewParameterCodec(newScheme(t)).DecodeParameters(query, SchemeGroupVersion, options); err != nil || options.Path != "api/v1" {
		t.Errorf("%+v, %v", options, err)
	}
}

// The predecessor's clients read these names.
func TestJSONNames(t *testing.T) {
	insecure, proxy := true, "http://p"
	text, err := json.Marshal(ClusterGateway{
		Spec: ClusterGatewaySpec{Provider: "p", Access: ClusterAccess{
			Endpoint: &ClusterEndpoint{Type: EndpointTypeConst, Const: &ClusterEndpointConst{
				Address: "https://h", CABundle: []byte("ca"), Insecure: &insecure, ProxyURL: &proxy,
			}},
			Credential: &ClusterAccessCredential{Type: CredentialTypeX509, X509: &X509{Certificate: []byte("crt")}},
		}},
		Status: ClusterGatewayStatus{Healthy: true, HealthyReason: "r"},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := `{"metadata":{},"spec":{"provider":"p","access":{"endpoint":{"type":"Const","const":{"address":"https://h","caBundle":"Y2E=",` +
		`"insecure":true,"proxy-url":"http://p"}},"credential":{"type":"X509Certificate","x509":{"certificate":"Y3J0"}}}},` +
		`"status":{"healthy":true,"healthyReason":"r"}}`
	if string(text) != want {
		t.Errorf("got\n%s\nwant\n%s", text, want)
	}
}
