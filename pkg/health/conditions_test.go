// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package health

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/dialer"
	"github.com/oam-dev/cluster-gateway/pkg/proxy"
)

const namespace = "cluster-gateway-system"

// secretOf returns the Secret of a cluster.
func secretOf(name string, endpoint v1alpha1.EndpointType) *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: name, UID: types.UID("uid-" + name), ResourceVersion: "1",
			Labels: map[string]string{
				v1alpha1.LabelCredentialType: string(v1alpha1.CredentialTypeServiceAccountToken),
				v1alpha1.LabelEndpointType:   string(endpoint),
			},
			Annotations: map[string]string{},
		},
		Data: map[string][]byte{"endpoint": []byte("https://127.0.0.1:6443"), "token": []byte("a-token")},
	}
}

func tunneled(name string) *corev1.Secret {
	s := secretOf(name, v1alpha1.EndpointTypeClusterProxy)
	s.Annotations[v1alpha1.AnnotationInsecureSkipTLSVerify] = "true"
	return s
}

func probeError(code int32, cause metav1.CauseType, err error) error {
	return &proxy.ProbeError{Cause: cause, Err: err, Status: &apierrors.StatusError{ErrStatus: metav1.Status{Code: code, Message: "because"}}}
}

var errNoAgent = probeError(503, proxy.CauseTunnel, &dialer.Error{Stage: dialer.StageTunnel, Err: &dialer.NoAgentError{}})

// brief formats conditions as TYPE=STATUS/REASON.
func brief(conditions []metav1.Condition) string {
	var all []string
	for _, c := range conditions {
		all = append(all, fmt.Sprintf("%s=%s/%s", c.Type, c.Status, c.Reason))
	}
	return strings.Join(all, " ")
}

func TestAssess(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	direct := cluster.Parse(secretOf("a", v1alpha1.EndpointTypeConst), cluster.ParseOptions{})
	edge := cluster.Parse(tunneled("a"), cluster.ParseOptions{})
	invalid := secretOf("a", v1alpha1.EndpointTypeConst)
	delete(invalid.Data, "token")
	const reached = " CredentialValid=Unknown/NotReached CertificateValid=Unknown/NotReached"
	tls := func(err error) error { return probeError(502, proxy.CauseTLS, &dialer.Error{Err: err}) }
	for _, test := range []struct {
		name string
		o    observation
		want string
	}{
		{"ready", observation{cluster: direct}, "Ready=True/Healthy CredentialValid=True/Accepted CertificateValid=True/Verified"},
		{"ready through a tunnel", observation{cluster: edge}, "Ready=True/Healthy TunnelConnected=True/Connected CredentialValid=True/Accepted CertificateValid=Unknown/NotVerified"},
		{"an agent too many", observation{cluster: edge, refusal: errors.New("x")}, "Ready=True/Healthy TunnelConnected=True/AgentsRefused CredentialValid=True/Accepted CertificateValid=Unknown/NotVerified"},
		{"a konnectivity-server", observation{cluster: edge, external: true}, "Ready=True/Healthy TunnelConnected=True/ConnectedExternally CredentialValid=True/Accepted CertificateValid=Unknown/NotVerified"},
		{"a bad agent", observation{cluster: edge, failing: errors.New("x")}, "Ready=True/Healthy TunnelConnected=True/AgentFailing CredentialValid=True/Accepted CertificateValid=Unknown/NotVerified"},
		{"an agent too many, and no agent", observation{cluster: edge, refusal: errors.New("x"), err: errNoAgent}, "Ready=False/NoAgent TunnelConnected=False/NoAgent" + reached},
		{"invalid", observation{cluster: cluster.Parse(invalid, cluster.ParseOptions{})}, "Ready=False/InvalidSecret"},
		{"no agent", observation{cluster: edge, err: errNoAgent}, "Ready=False/NoAgent TunnelConnected=False/NoAgent" + reached},
		{
			"a tunnel that fails", observation{cluster: edge, err: probeError(503, proxy.CauseTunnel, errors.New("x"))},
			"Ready=False/TunnelFailed TunnelConnected=False/TunnelFailed" + reached,
		},
		{"a silent agent", observation{cluster: edge, err: probeError(502, proxy.CauseAgent, errors.New("x"))}, "Ready=False/AgentFailed TunnelConnected=True/Connected" + reached},
		{"the API server is down", observation{cluster: direct, err: probeError(502, proxy.CauseEndpoint, errors.New("x"))}, "Ready=False/APIServerUnreachable" + reached},
		{"no answer", observation{cluster: direct, err: probeError(http.StatusGatewayTimeout, proxy.CauseEndpoint, errors.New("x"))}, "Ready=False/APIServerTimeout" + reached},
		{"another CA", observation{cluster: direct, err: tls(x509.UnknownAuthorityError{})}, "Ready=False/UnknownAuthority CredentialValid=Unknown/NotReached CertificateValid=False/UnknownAuthority"},
		{"another name", observation{cluster: direct, err: tls(x509.HostnameError{Certificate: &x509.Certificate{}})}, "Ready=False/WrongName CredentialValid=Unknown/NotReached CertificateValid=False/WrongName"},
		{"an old certificate", observation{cluster: direct, err: tls(x509.CertificateInvalidError{Reason: x509.Expired})}, "Ready=False/Expired CredentialValid=Unknown/NotReached CertificateValid=False/Expired"},
		{"no TLS", observation{cluster: direct, err: tls(errors.New("x"))}, "Ready=False/TLSFailed CredentialValid=Unknown/NotReached CertificateValid=False/TLSFailed"},
		{"401", observation{cluster: direct, err: probeError(502, proxy.CauseCredential, proxy.ErrCredentialRejected)}, "Ready=False/CredentialRejected CredentialValid=False/CredentialRejected CertificateValid=True/Verified"},
		{"a plugin", observation{cluster: direct, err: probeError(502, proxy.CauseCredential, errors.New("x"))}, "Ready=False/CredentialPluginFailed CredentialValid=False/CredentialPluginFailed CertificateValid=True/Verified"},
		{"not ready", observation{cluster: direct, err: probeError(502, proxy.CauseResponse, errors.New("x"))}, "Ready=False/APIServerNotReady CredentialValid=True/Accepted CertificateValid=True/Verified"},
		{"another error", observation{cluster: direct, err: errors.New("x")}, "Ready=False/Unhealthy" + reached},
		{"expires soon", observation{cluster: direct, certificate: &x509.Certificate{NotBefore: now.Add(-99 * time.Hour), NotAfter: now.Add(time.Hour)}}, "Ready=True/Healthy CredentialValid=True/Accepted CertificateValid=True/ExpiresSoon"},
		{"the certificate of the agent expires soon", observation{cluster: edge, agent: &x509.Certificate{NotBefore: now.Add(-99 * time.Hour), NotAfter: now.Add(time.Hour)}}, "Ready=True/Healthy TunnelConnected=True/Connected CredentialValid=True/Accepted CertificateValid=True/ExpiresSoon"},
		{
			"short-lived and new", observation{cluster: edge, agent: &x509.Certificate{NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour)}},
			"Ready=True/Healthy TunnelConnected=True/Connected CredentialValid=True/Accepted CertificateValid=Unknown/NotVerified",
		},
		{
			"not renewed", observation{cluster: direct, renewal: map[string]error{v1alpha1.ConditionCredentialValid: errors.New("forbidden")}},
			"Ready=True/Healthy CredentialValid=True/RenewalFailed CertificateValid=True/Verified",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.o.now = now
			got := assess(&test.o)
			if brief(got) != test.want {
				t.Errorf("got  %s\nwant %s", brief(got), test.want)
			}
			for _, c := range got {
				if c.Message == "" {
					t.Errorf("%s has no message", c.Type)
				}
			}
		})
	}
}

func TestAssessExpired(t *testing.T) {
	// {"exp":1700000000}
	s := secretOf("a", v1alpha1.EndpointTypeConst)
	s.Data["token"] = []byte("eyJhbGciOiJub25lIn0.eyJleHAiOjE3MDAwMDAwMDB9.c2ln")
	c := cluster.Parse(s, cluster.ParseOptions{})
	end := time.Unix(1700000000, 0)
	for at, want := range map[time.Time]string{
		end.Add(-30 * 24 * time.Hour): "True/Accepted", end.Add(-time.Hour): "True/ExpiresSoon", end: "False/Expired",
	} {
		got := (&observation{cluster: c, now: at}).credential()
		if string(got.Status)+"/"+got.Reason != want {
			t.Errorf("at %s: %+v", at, got)
		}
	}
}

func TestCompare(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	const h, r, v, c, o = v1alpha1.AnnotationHealthy, v1alpha1.AnnotationHealthyReason, v1alpha1.AnnotationVersion, v1alpha1.AnnotationConditions, v1alpha1.AnnotationOverride
	ready := `[{"type":"Ready","status":"True","reason":"Healthy","lastTransitionTime":"2026-01-01T00:00:00Z","message":"old"},
		{"type":"CredentialValid","status":"True","reason":"Accepted","lastTransitionTime":"2026-01-01T00:00:00Z","message":"old"},
		{"type":"CertificateValid","status":"True","reason":"Verified","lastTransitionTime":"2026-01-01T00:00:00Z","message":"old"}]`
	down := probeError(502, proxy.CauseEndpoint, errors.New("x"))
	for _, test := range []struct {
		name   string
		stored map[string]string
		err    error
		want   map[string]string // "-": removed; "*": anything
		events string
	}{
		{name: "first probe", want: map[string]string{h: "true", r: "Healthy", v: "v1.37.2", c: "*"}, events: "Ready=True/Healthy"},
		{name: "unchanged", stored: map[string]string{h: "true", r: "Healthy", v: "v1.37.2", c: ready}},
		{name: "upgraded", stored: map[string]string{h: "true", r: "Healthy", v: "v1.36.0", c: ready}, want: map[string]string{v: "v1.37.2"}},
		{
			name: "down", stored: map[string]string{h: "true", r: "Healthy", v: "v1.37.2", c: ready}, err: down,
			want: map[string]string{h: "false", r: "APIServerUnreachable", c: "*"}, events: "Ready=False/APIServerUnreachable",
		},
		{
			name: "from the predecessor", stored: map[string]string{h: "false", r: "MissingHealthyReply"},
			want: map[string]string{h: "true", r: "Healthy", v: "v1.37.2", c: "*"}, events: "Ready=True/Healthy",
		},
		{name: "overridden", stored: map[string]string{h: "false", r: "UnderRepair", v: "v1.37.2", c: ready, o: "2026-05-01T11:30:00Z"}},
		{
			name: "overridden and down", stored: map[string]string{h: "true", r: "Trust", v: "v1.37.2", c: ready, o: "2026-05-01T11:30:00Z"}, err: down,
			want: map[string]string{c: "*"}, events: "Ready=False/APIServerUnreachable",
		},
		{
			name: "expired override", stored: map[string]string{h: "false", r: "UnderRepair", v: "v1.37.2", c: ready, o: "2026-05-01T10:30:00Z"},
			want: map[string]string{h: "true", r: "Healthy", o: "-"},
		},
		{
			name: "overridden without a time", stored: map[string]string{h: "false", r: "UnderRepair", v: "v1.37.2", c: ready},
			want: map[string]string{o: "2026-05-01T12:00:00Z"},
		},
		{
			name: "overridden before the first probe", stored: map[string]string{h: "false", r: "UnderRepair", o: "2026-05-01T11:30:00Z"},
			want: map[string]string{v: "v1.37.2", c: "*"}, events: "Ready=True/Healthy",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			secret := secretOf("a", v1alpha1.EndpointTypeConst)
			secret.Annotations = test.stored
			parsed := cluster.Parse(secret, cluster.ParseOptions{})
			got, err := compare(parsed.Health, &observation{cluster: parsed, now: now, err: test.err, latency: 12345678}, "v1.37.2", time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			if len(test.want) > 0 {
				test.want[v1alpha1.AnnotationLastProbeTime], test.want[v1alpha1.AnnotationLatency] = "2026-05-01T12:00:00Z", "12.35ms"
				if test.err != nil {
					test.want[v1alpha1.AnnotationLatency] = "-"
				}
			}
			for key, value := range got.annotations {
				want, expected := test.want[key]
				switch {
				case !expected:
					t.Errorf("wrote %s", key)
				case want == "-" && value != nil, want != "-" && value == nil, want != "-" && want != "*" && *value != want:
					t.Errorf("%s: got %v, want %q", key, value, want)
				}
			}
			if len(got.annotations) != len(test.want) {
				t.Errorf("wrote %d annotations, want %d", len(got.annotations), len(test.want))
			}
			if brief(got.reported) != test.events {
				t.Errorf("events: %s", brief(got.reported))
			}
			if len(got.annotations) == 0 {
				return
			}
			// The next probe finds what was written, and writes nothing.
			for key, value := range got.annotations {
				if value == nil {
					delete(secret.Annotations, key)
				} else {
					if secret.Annotations == nil {
						secret.Annotations = map[string]string{}
					}
					secret.Annotations[key] = *value
				}
			}
			again, err := compare(cluster.ParseHealth(secret.Annotations), &observation{cluster: parsed, now: now.Add(time.Minute), err: test.err}, "v1.37.2", time.Hour)
			if err != nil || len(again.annotations) != 0 {
				t.Errorf("the next probe writes %v, %v", again.annotations, err)
			}
		})
	}
}

func TestTransitionTimes(t *testing.T) {
	before := metav1.NewTime(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	stored := []metav1.Condition{
		{Type: "Ready", Status: "False", Reason: "NoAgent", LastTransitionTime: before},
		{Type: "CredentialValid", Status: "True", Reason: "Accepted", LastTransitionTime: before},
	}
	all, changed := merge(stored, []metav1.Condition{
		{Type: "Ready", Status: "False", Reason: "APIServerUnreachable"}, // the same status with another reason
		{Type: "CredentialValid", Status: "Unknown", Reason: "NotReached"},
	}, now)
	if !all[0].LastTransitionTime.Equal(&before) || !all[1].LastTransitionTime.Time.Equal(now) || len(changed) != 2 {
		t.Errorf("%+v", all)
	}
}

// What a cluster says must not fill the hub or control a terminal.
func TestMessagesArePrintableAndBounded(t *testing.T) {
	c := cluster.Parse(secretOf("a", v1alpha1.EndpointTypeConst), cluster.ParseOptions{})
	err := errors.New("it answered \x1b[2J\n" + strings.Repeat("é", 60<<10))
	for _, got := range assess(&observation{cluster: c, err: probeError(502, proxy.CauseTLS, err), renewal: map[string]error{v1alpha1.ConditionCredentialValid: err}}) {
		if len(got.Message) > 1024 || strings.ContainsAny(got.Message, "\x1b\n") || !utf8.ValidString(got.Message) {
			t.Errorf("%s: message of %d bytes: %.80q", got.Type, len(got.Message), got.Message)
		}
	}
}
