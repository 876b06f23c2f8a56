// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"encoding/base64"
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

func TestRender(t *testing.T) {
	ca := newAuthority(t, "ca")
	client := ca.issue(t, newKey(t), "admin")
	created := metav1.NewTime(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
	deleted := metav1.NewTime(time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC))
	probed := metav1.NewTime(time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC))
	secret := secretOf("X509", "", data{
		"endpoint": "https://10.0.0.1:6443/prefix/", "ca": "# ours\n" + string(ca.pem), "proxy-url": "socks5://me:secret@proxy",
		"tls.crt": string(client.key) + string(client.cert), "tls.key": string(client.key),
	})
	secret.Labels["team"] = "a"
	secret.DeletionTimestamp, secret.DeletionGracePeriodSeconds = &deleted, ptr.To[int64](0)
	secret.Finalizers, secret.GenerateName = []string{"x/y"}, "gen-"
	secret.OwnerReferences = []metav1.OwnerReference{{Name: "owner"}}
	secret.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "kubectl", FieldsV1: metav1.NewFieldsV1(`{"f:data":{}}`)}}
	secret.Annotations = map[string]string{
		v1alpha1.AnnotationInsecureSkipTLSVerify: "true",
		v1alpha1.AnnotationHealthy:               "true", v1alpha1.AnnotationHealthyReason: "Probed",
		v1alpha1.AnnotationVersion: "v1.37.2", v1alpha1.AnnotationLatency: "12.5ms", v1alpha1.AnnotationLastProbeTime: "2026-02-03T05:05:06+01:00",
		corev1.LastAppliedConfigAnnotation: "the whole Secret", "kapp.k14s.io/original": "the whole Secret",
		"note": "kept",
	}
	before := secret.DeepCopy()

	got := Render(secret, ParseOptions{})
	want := &v1alpha1.ClusterGateway{
		TypeMeta: metav1.TypeMeta{APIVersion: "cluster.core.oam.dev/v1alpha1", Kind: "ClusterGateway"},
		ObjectMeta: metav1.ObjectMeta{
			Name: "east", UID: "5b2f", ResourceVersion: "41", CreationTimestamp: created,
			DeletionTimestamp: &deleted, DeletionGracePeriodSeconds: ptr.To[int64](0),
			Labels:      map[string]string{v1alpha1.LabelCredentialType: "X509", "team": "a"},
			Annotations: maps.Clone(secret.Annotations),
		},
		Spec: v1alpha1.ClusterGatewaySpec{Access: v1alpha1.ClusterAccess{
			Endpoint: &v1alpha1.ClusterEndpoint{Type: "Const", Const: &v1alpha1.ClusterEndpointConst{
				Address: "https://10.0.0.1:6443/prefix", CABundle: ca.pem, Insecure: ptr.To(true), ProxyURL: ptr.To("socks5://REDACTED@proxy:1080"),
			}},
			Credential: &v1alpha1.ClusterAccessCredential{Type: "X509Certificate", X509: &v1alpha1.X509{Certificate: client.cert}},
		}},
		Status: v1alpha1.ClusterGatewayStatus{
			Healthy: true, HealthyReason: "Probed", Version: "v1.37.2", Route: "direct", Identity: "credential", LastProbeTime: &probed,
			Latency: &metav1.Duration{Duration: 12500 * time.Microsecond}, CredentialExpirationTime: ptr.To(metav1.NewTime(client.notAfter)),
			Conditions: []metav1.Condition{{
				Type: "Ready", Status: "True", Reason: "Probed", LastTransitionTime: probed, Message: "as found by the last probe or set by an operator",
			}},
		},
	}
	delete(want.Annotations, corev1.LastAppliedConfigAnnotation)
	delete(want.Annotations, "kapp.k14s.io/original")
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%s\nwant\n%s", marshal(t, got), marshal(t, want))
	}

	// What is served is the caller's: it shares nothing with the Secret or with the next that is
	// served.
	got.Labels["team"], got.Annotations["note"] = "changed", "changed"
	got.DeletionTimestamp.Time, *got.DeletionGracePeriodSeconds = time.Time{}, 5
	if !reflect.DeepEqual(secret, before) {
		t.Error("the Secret has changed")
	}
	c := Parse(secret, ParseOptions{})
	first := c.ClusterGateway(secret)
	first.Spec.Access.Endpoint.Const.CABundle[0], first.Spec.Access.Credential.X509.Certificate[0] = 'X', 'X'
	if !reflect.DeepEqual(c.ClusterGateway(secret), want) {
		t.Error("the Cluster has changed")
	}
}

func TestRenderReady(t *testing.T) {
	written := metav1.NewTime(time.Date(2026, 1, 5, 0, 0, 0, 0, time.UTC))
	for _, test := range []struct {
		name        string
		data        data
		annotations map[string]string
		healthy     bool
		status      metav1.ConditionStatus
		reason      string
		message     string
	}{
		{name: "not probed", status: "Unknown", reason: "NotProbed"},
		{name: "healthy", annotations: map[string]string{v1alpha1.AnnotationHealthy: "true"}, healthy: true, status: "True", reason: "Healthy"},
		{name: "unhealthy", annotations: map[string]string{v1alpha1.AnnotationHealthy: "false"}, status: "False", reason: "Unhealthy"},
		{name: "why", annotations: map[string]string{v1alpha1.AnnotationHealthy: "False", v1alpha1.AnnotationHealthyReason: "MissingHealthyReply"}, status: "False", reason: "MissingHealthyReply"},
		{name: "a reason that is none", annotations: map[string]string{v1alpha1.AnnotationHealthy: "false", v1alpha1.AnnotationHealthyReason: "it is down"}, status: "False", reason: "Unhealthy"},
		{name: "unreadable", annotations: map[string]string{v1alpha1.AnnotationHealthy: "perhaps", v1alpha1.AnnotationLatency: "-1s", v1alpha1.AnnotationLastProbeTime: "yesterday"}, status: "Unknown", reason: "NotProbed"},
		{
			name: "invalid, although the stored state is healthy", data: data{"ca.crt": "garbage", "token": ""},
			annotations: map[string]string{v1alpha1.AnnotationHealthy: "true", v1alpha1.AnnotationHealthyReason: "Probed"},
			status:      "False", reason: "InvalidSecret",
			message: "ca.crt: is not in PEM format; it must contain a block that begins with -----BEGIN CERTIFICATE-----; token: is missing; it must be a bearer token",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			secret := tokenSecret(test.data)
			secret.Annotations = test.annotations
			secret.ManagedFields = []metav1.ManagedFieldsEntry{{Time: &written}, {}}
			status := Render(secret, ParseOptions{}).Status
			if len(status.Conditions) != 1 {
				t.Fatalf("conditions: %v", status.Conditions)
			}
			ready := status.Conditions[0]
			if ready.Type != "Ready" || ready.Status != test.status || ready.Reason != test.reason || status.Healthy != test.healthy {
				t.Errorf("healthy %v, %+v", status.Healthy, ready)
			}
			// False alone would say that somebody has looked.
			if unknown := ready.Status == metav1.ConditionUnknown; unknown != (status.HealthyReason == v1alpha1.ReasonNotProbed) {
				t.Errorf("Ready=%s has the healthyReason %q", ready.Status, status.HealthyReason)
			}
			if test.message != "" && ready.Message != test.message {
				t.Errorf("message %q", ready.Message)
			}
			if !ready.LastTransitionTime.Equal(&written) {
				t.Errorf("transition at %v", ready.LastTransitionTime)
			}
			if status.Latency != nil || status.LastProbeTime != nil {
				t.Errorf("status %+v", status)
			}
		})
	}
}

func TestRenderTunnelAndInvalid(t *testing.T) {
	ca := newAuthority(t, "ca")
	got := Render(secretOf(tokenType, tunnel, data{"ca.crt": string(ca.pem), "token": jwt(`{"exp":1893456000}`)}), ParseOptions{})
	endpoint := got.Spec.Access.Endpoint
	if endpoint.Type != "ClusterProxy" || endpoint.Const.Address != "https://kubernetes.default.svc:443" || got.Status.Route != "tunnel" {
		t.Errorf("tunnel: %s", marshal(t, got))
	}
	if at := got.Status.CredentialExpirationTime; at == nil || at.Unix() != 1893456000 {
		t.Errorf("expiry: %v", at)
	}
	if got.Spec.Access.Credential.Type != tokenType || got.Spec.Access.Credential.X509 != nil {
		t.Errorf("credential: %+v", got.Spec.Access.Credential)
	}

	// What is at fault is not served: it may be anything.
	got = Render(tokenSecret(data{"endpoint": "https://me:hunter22@h", "ca.crt": "hunter22", "proxy-url": "ftp://me:hunter22@h"}), ParseOptions{})
	if text := marshal(t, got); strings.Contains(text, "hunter22") || got.Spec.Access.Endpoint.Const.Address != "" {
		t.Errorf("served: %s", text)
	}
	unknown := tokenSecret(nil)
	unknown.Labels[v1alpha1.LabelEndpointType] = "Other"
	if got = Render(unknown, ParseOptions{}); got.Status.Route != "" || got.Spec.Access.Endpoint.Type != "Const" {
		t.Errorf("unknown route: %s", marshal(t, got))
	}
}

// Tools keep copies of what they applied in annotations of their own, in the forms that JSON and
// the data of a Secret have.
func TestRenderDropsCopiesOfSecrets(t *testing.T) {
	ca := newAuthority(t, "ca")
	client := ca.issue(t, newKey(t), "admin")
	secret := secretOf(x509Type, "", data{
		"endpoint": "https://h", "tls.crt": string(client.cert), "tls.key": string(client.key),
		"token": "a-token-that-is-not-used", "proxy-url": "http://me:hunter22@proxy",
	})
	object := marshal(t, map[string]any{"data": secret.Data})
	stringData := marshal(t, map[string]string{"tls.key": string(client.key)})
	secret.Annotations = map[string]string{
		"tool/data": object, "tool/string-data": stringData, "tool/raw": "x" + string(client.key),
		"tool/token": "Bearer a-token-that-is-not-used", "tool/proxy": "http://me:hunter22@proxy",
		"tool/base64": base64.StdEncoding.EncodeToString(client.key),
		"tool/public": string(client.cert), "tool/words": "token",
	}
	var kept []string
	for key := range Render(secret, ParseOptions{}).Annotations {
		kept = append(kept, key)
	}
	slices.Sort(kept)
	if !slices.Equal(kept, []string{"tool/public", "tool/words"}) {
		t.Errorf("kept %q", kept)
	}
}

func marshal(t testing.TB, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// A list of a thousand clusters parses a thousand Secrets.
func BenchmarkRender(b *testing.B) {
	ca := newAuthority(b, "ca")
	rsa := ca.issue(b, newRSAKey(b), "admin")
	ec := ca.issue(b, newKey(b), "admin")
	for name, secret := range map[string]*corev1.Secret{
		"token": tokenSecret(data{"ca.crt": string(ca.pem)}),
		"ec":    secretOf(x509Type, "", data{"endpoint": "https://h", "ca.crt": string(ca.pem), "tls.crt": string(ec.cert), "tls.key": string(ec.key)}),
		"rsa":   secretOf(x509Type, "", data{"endpoint": "https://h", "ca.crt": string(ca.pem), "tls.crt": string(rsa.cert), "tls.key": string(rsa.key)}),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if c := Parse(secret, ParseOptions{}); c.Err() != nil {
					b.Fatal(c.Err())
				}
			}
		})
	}
}

// TestRenderConditions: what probes found is shown, and an operator's word above it.
func TestRenderConditions(t *testing.T) {
	const found = `[
		{"type":"CredentialValid","status":"True","reason":"Accepted","message":"m","lastTransitionTime":"2026-02-03T04:05:06Z"},
		{"type":"Ready","status":"False","reason":"NoAgent","message":"no agent is connected","lastTransitionTime":"2026-02-03T04:05:06Z"},
		{"type":"TunnelConnected","status":"False","reason":"NoAgent","message":"no agent","lastTransitionTime":"2026-02-03T04:05:06Z"},
		{"type":"CertificateValid","status":"Perhaps","reason":"x"},
		{"type":"Other","status":"True","reason":"Accepted"}]`
	annotations := func(more ...string) map[string]string {
		all := map[string]string{
			v1alpha1.AnnotationHealthy: "false", v1alpha1.AnnotationHealthyReason: "NoAgent", v1alpha1.AnnotationConditions: found,
			v1alpha1.AnnotationInsecureSkipTLSVerify: "true",
		}
		for i := 0; i < len(more); i += 2 {
			all[more[i]] = more[i+1]
		}
		return all
	}
	for _, test := range []struct {
		name        string
		annotations map[string]string
		direct      bool
		invalid     bool
		want        string
		message     string
	}{
		{name: "as found", annotations: annotations(), want: "Ready=False/NoAgent TunnelConnected=False/NoAgent CredentialValid=True/Accepted", message: "no agent is connected"},
		{name: "a direct cluster has no tunnel", direct: true, annotations: annotations(), want: "Ready=False/NoAgent CredentialValid=True/Accepted", message: "no agent is connected"},
		{
			name: "an override", annotations: annotations(v1alpha1.AnnotationHealthy, "true", v1alpha1.AnnotationHealthyReason, "Trust", v1alpha1.AnnotationOverride, "2026-02-04T00:00:00Z"),
			want:    "Ready=True/Trust TunnelConnected=False/NoAgent CredentialValid=True/Accepted",
			message: "set by an operator; the last probe found Ready=False, NoAgent: no agent is connected",
		},
		{
			name: "an override in the annotations, without the subresource", annotations: annotations(v1alpha1.AnnotationHealthy, "true"),
			want:    "Ready=True/NoAgent TunnelConnected=False/NoAgent CredentialValid=True/Accepted",
			message: "set by an operator; the last probe found Ready=False, NoAgent: no agent is connected",
		},
		{name: "an invalid Secret", invalid: true, annotations: annotations(), want: "Ready=False/InvalidSecret", message: "token: is missing; it must be a bearer token"},
		{
			name: "a Secret that was invalid when it was probed, and is valid now",
			annotations: annotations(v1alpha1.AnnotationHealthyReason, "InvalidSecret", v1alpha1.AnnotationConditions,
				`[{"type":"Ready","status":"False","reason":"InvalidSecret","message":"token: is missing"}]`),
			want: "Ready=Unknown/NotProbed", message: "the cluster has not been probed yet",
		},
		{
			name: "a Secret that had the annotation of the predecessor when it was probed, and does not have it now",
			annotations: annotations(v1alpha1.AnnotationHealthyReason, "UnsupportedProxyConfiguration", v1alpha1.AnnotationConditions,
				`[{"type":"Ready","status":"False","reason":"UnsupportedProxyConfiguration","message":"annotation …: is not supported"}]`),
			want: "Ready=Unknown/NotProbed", message: "the cluster has not been probed yet",
		},
		{
			name: "a valid Secret that a probe could not use",
			annotations: annotations(v1alpha1.AnnotationHealthyReason, "InvalidSecret", v1alpha1.AnnotationConditions,
				`[{"type":"Ready","status":"False","reason":"InvalidSecret","message":"no dialer"},{"type":"CredentialValid","status":"Unknown","reason":"NotProbed"}]`),
			want: "Ready=False/InvalidSecret CredentialValid=Unknown/NotProbed", message: "no dialer",
		},
		{name: "no JSON", annotations: annotations(v1alpha1.AnnotationConditions, "{"), want: "Ready=False/NoAgent", message: "as found by the last probe or set by an operator"},
		{
			name: "a secret in a message", annotations: annotations(v1alpha1.AnnotationConditions, strings.ReplaceAll(found, "no agent is connected", "Bearer "+string(tokenSecret(nil).Data["token"]))),
			want: "Ready=False/NoAgent TunnelConnected=False/NoAgent CredentialValid=True/Accepted",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			keys := data{}
			if test.invalid {
				keys["token"] = ""
			}
			secret := tokenSecret(keys)
			if !test.direct {
				secret.Labels[v1alpha1.LabelEndpointType] = "ClusterProxy"
			}
			secret.Annotations = test.annotations
			g := Render(secret, ParseOptions{})
			var got []string
			for _, c := range g.Status.Conditions {
				got = append(got, c.Type+"="+string(c.Status)+"/"+c.Reason)
			}
			if text := strings.Join(got, " "); text != test.want {
				t.Errorf("got  %s\nwant %s", text, test.want)
			}
			if g.Status.Conditions[0].Message != test.message {
				t.Errorf("message %q", g.Status.Conditions[0].Message)
			}
			if _, ok := g.Annotations[v1alpha1.AnnotationConditions]; ok {
				t.Error("the annotation is served as well")
			}
		})
	}
}
