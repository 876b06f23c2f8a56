// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package rotation

import (
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
)

const namespace = "cluster-gateway-system"

type list []*cluster.Cluster

func (l list) List() []*cluster.Cluster { return l }

type route func(*http.Request) (int, string)

func (r route) RoundTrip(req *http.Request) (*http.Response, error) {
	code, body := r(req)
	return &http.Response{
		StatusCode: code, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(body)), Request: req,
	}, nil
}

func jwt(begin, end time.Time) string {
	enc := base64.RawURLEncoding.EncodeToString
	return enc([]byte(`{"alg":"none"}`)) + "." + enc(fmt.Appendf(nil, `{"iat":%d,"exp":%d}`, begin.Unix(), end.Unix())) + ".c2ln"
}

func secretOf(managedBy, token string) *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "edge", UID: "u", Labels: map[string]string{
			v1alpha1.LabelCredentialType: "ServiceAccountToken", "app.kubernetes.io/managed-by": managedBy,
		}},
		Data: map[string][]byte{"endpoint": []byte("https://127.0.0.1:6443"), "token": []byte(token)},
	}
}

func TestTokens(t *testing.T) {
	begin := time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)
	end := begin.Add(100 * time.Hour)
	old := jwt(begin, end)
	for _, test := range []struct {
		name, managedBy, token string
		now                    time.Time
		answer                 int
		wantToken              string
		wantFailure            string
	}{
		{name: "not due", managedBy: "agent-bootstrap", token: old, now: begin.Add(70 * time.Hour), wantToken: old},
		{name: "due", managedBy: "agent-bootstrap", token: old, now: begin.Add(81 * time.Hour), answer: 201, wantToken: "new"},
		{name: "not agent-bootstrap's", managedBy: "helm", token: old, now: begin.Add(81 * time.Hour), wantToken: old},
		{name: "without an end", managedBy: "agent-bootstrap", token: "opaque", now: begin.Add(81 * time.Hour), wantToken: "opaque"},
		{name: "over", managedBy: "agent-bootstrap", token: old, now: end, wantToken: old},
		{name: "forbidden", managedBy: "agent-bootstrap", token: old, now: begin.Add(81 * time.Hour), answer: 403, wantToken: old, wantFailure: "which ends at 2026-05-05T04:00:00Z, could not be renewed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			secret := secretOf(test.managedBy, test.token)
			hub := fake.NewClientset(secret)
			requests := 0
			var told []string
			now := test.now
			tokens := NewTokens(Config{
				Clusters: list{cluster.Parse(secret, cluster.ParseOptions{})}, Secrets: hub.CoreV1().Secrets(namespace),
				Now: func() time.Time { return now }, Changed: func(name string) { told = append(told, name) },
				Route: func(name string) http.RoundTripper {
					return route(func(req *http.Request) (int, string) {
						requests++
						body, _ := io.ReadAll(req.Body)
						if req.Method != "POST" || req.URL.Path != "/api/v1/namespaces/cluster-gateway-agent/serviceaccounts/cluster-gateway/token" || !strings.Contains(string(body), `"expirationSeconds":360000`) {
							t.Errorf("%s %s %s", req.Method, req.URL, body)
						}
						if test.answer == 403 {
							return 403, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","code":403,"message":"no"}`
						}
						return test.answer, `{"kind":"TokenRequest","apiVersion":"authentication.k8s.io/v1","status":{"token":"new","expirationTimestamp":"2026-06-01T00:00:00Z"}}`
					})
				},
			})
			tokens.look(t.Context())
			got, err := hub.CoreV1().Secrets(namespace).Get(t.Context(), "edge", metav1.GetOptions{})
			if err != nil || string(got.Data["token"]) != test.wantToken {
				t.Errorf("the token is %s, %v", got.Data["token"], err)
			}
			want := 0
			if test.answer != 0 {
				want = 1
			}
			failure := tokens.Failures("edge")[v1alpha1.ConditionCredentialValid]
			if requests != want || (failure != nil) != (test.wantFailure != "") || failure != nil && !strings.Contains(failure.Error(), test.wantFailure) {
				t.Errorf("%d requests, failure %v", requests, failure)
			}
			if failure == nil {
				return
			}
			if len(told) != 1 {
				t.Errorf("told %q", told)
			}
			tokens.look(t.Context()) // not at once
			now = now.Add(2 * time.Minute)
			tokens.look(t.Context())
			if requests != 2 {
				t.Errorf("%d requests", requests)
			}
		})
	}
}
