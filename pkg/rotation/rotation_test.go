// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package rotation

import (
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

// That renewals work is shown against real clusters, in test/e2e/rotation.

func jwt(begin, end time.Time) string {
	enc := base64.RawURLEncoding.EncodeToString
	return enc([]byte(`{"alg":"none"}`)) + "." + enc(fmt.Appendf(nil, `{"iat":%d,"exp":%d}`, begin.Unix(), end.Unix())) + ".c2ln"
}

func TestTokenDue(t *testing.T) {
	begin := time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)
	end := begin.Add(100 * time.Hour)
	for _, test := range []struct {
		name, managedBy, token string
		age                    time.Duration
		want                   bool
	}{
		{"young", v1alpha1.ManagedByAgentBootstrap, jwt(begin, end), 74 * time.Hour, false},
		{"old", v1alpha1.ManagedByAgentBootstrap, jwt(begin, end), 81 * time.Hour, true},
		{"of somebody else", "helm", jwt(begin, end), 81 * time.Hour, false},
		{"without an end", v1alpha1.ManagedByAgentBootstrap, "opaque", 81 * time.Hour, false},
		{"over", v1alpha1.ManagedByAgentBootstrap, jwt(begin, end), 100 * time.Hour, false},
	} {
		tokens := NewTokens(TokensConfig{Now: func() time.Time { return begin.Add(test.age) }})
		c := cluster.Parse(&corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: "edge", Labels: map[string]string{
				v1alpha1.LabelCredentialType: "ServiceAccountToken", "app.kubernetes.io/managed-by": test.managedBy,
			}},
			Data: map[string][]byte{"endpoint": []byte("https://127.0.0.1:6443"), "token": []byte(test.token)},
		}, cluster.ParseOptions{})
		if got := tokens.due(c); got != test.want {
			t.Errorf("%s: due is %v", test.name, got)
		}
	}
}

// TestAgentDue shows that an agent's Secret is read while an agent is connected to any replica.
func TestAgentDue(t *testing.T) {
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "edge", Labels: map[string]string{
			v1alpha1.LabelCredentialType: "ServiceAccountToken", v1alpha1.LabelEndpointType: string(v1alpha1.EndpointTypeClusterProxy),
			"app.kubernetes.io/managed-by": v1alpha1.ManagedByAgentBootstrap,
		}, Annotations: map[string]string{v1alpha1.AnnotationInsecureSkipTLSVerify: "true"}},
		Data: map[string][]byte{"endpoint": []byte("https://127.0.0.1:6443"), "token": []byte("opaque")},
	}
	for _, test := range []struct{ here, elsewhere, want bool }{{false, false, false}, {true, false, true}, {false, true, true}} {
		agents := NewAgents(AgentsConfig{
			Connected: func(string) *x509.Certificate {
				if test.here {
					return &x509.Certificate{}
				}
				return nil
			},
			Elsewhere: func(string) bool { return test.elsewhere },
		})
		c := cluster.Parse(secret, cluster.ParseOptions{TunnelMode: cluster.TunnelEmbedded})
		if got := agents.due(c); got != test.want {
			t.Errorf("%+v: due is %v (%v)", test, got, c.Err())
		}
	}
}

// endless answers every request, and does not stop.
type endless struct{}

func (endless) RoundTrip(req *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(spaces{}), Request: req}, nil
}

type spaces struct{}

func (spaces) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

// TestEndlessAnswer: a cluster that answers without an end takes a bounded part of the gateway's
// memory.
func TestEndlessAnswer(t *testing.T) {
	conn, err := Route{Shared: func(string) http.RoundTripper { return endless{} }}.connectShared(&cluster.Cluster{Name: "edge"})
	if err != nil {
		t.Fatal(err)
	}
	var tooLarge *http.MaxBytesError
	if err := registration.DeliverAgentCertificate(t.Context(), conn.kube, nil, registration.AgentPair{}); !errors.As(err, &tooLarge) {
		t.Errorf("got %v", err)
	}
}
