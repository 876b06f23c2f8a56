// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registration

import (
	"crypto/x509"
	"errors"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/pki"
)

// issuedNow is a certificate that was just issued.
func issuedNow(t *testing.T) *x509.Certificate {
	t.Helper()
	_, cert, err := IssueAgentPair(newAuthority(t), "edge", time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestCheckAgentCertificate(t *testing.T) {
	t.Parallel()
	cert := issuedNow(t)
	issued := pki.IssuedAt(cert)
	for name, test := range map[string]struct {
		since   time.Time
		revoked bool
	}{
		"no time":             {time.Time{}, false},
		"the same second":     {issued.Add(900 * time.Millisecond), false},
		"issued a second ago": {issued.Add(time.Second), true},
		"issued afterwards":   {issued.Add(-time.Second), false},
	} {
		if err := CheckAgentCertificate(cert, test.since); errors.Is(err, ErrRevoked) != test.revoked || (err != nil) != test.revoked {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestAcceptAgentCertificate shows that a certificate that was just issued is accepted, even if the
// clock of its issuer is behind, and that another registration is left alone.
func TestAcceptAgentCertificate(t *testing.T) {
	t.Parallel()
	cert := issuedNow(t)
	issued := pki.IssuedAt(cert).UTC()
	at := func(d time.Duration) string { return issued.Add(d).Format(time.RFC3339) }
	for name, test := range map[string]struct{ uid, before, after string }{
		"earlier":              {"u", at(-time.Hour), at(-time.Hour)},
		"a clock behind":       {"u", at(time.Minute), at(0)},
		"none":                 {"u", "", ""},
		"another registration": {"other", at(time.Minute), at(time.Minute)},
	} {
		secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "edge", UID: "u", Annotations: map[string]string{}}}
		if test.before != "" {
			secret.Annotations[v1alpha1.AnnotationAgentCertificatesSince] = test.before
		}
		secrets := fake.NewClientset(secret).CoreV1().Secrets("ns")
		if err := AcceptAgentCertificate(t.Context(), secrets, "edge", types.UID(test.uid), cert); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		after, err := secrets.Get(t.Context(), "edge", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if got := after.Annotations[v1alpha1.AnnotationAgentCertificatesSince]; got != test.after {
			t.Errorf("%s: the time is %q, want %q", name, got, test.after)
		}
	}
	if err := AcceptAgentCertificate(t.Context(), fake.NewClientset().CoreV1().Secrets("ns"), "edge", "", cert); err != nil {
		t.Errorf("no Secret: %v", err)
	}
}

// TestSinceOfExistingSecret shows that only a new Secret gets the time: a repeated registration
// must accept the agents that run.
func TestSinceOfExistingSecret(t *testing.T) {
	t.Parallel()
	wanted := ClusterSecret{Name: "edge", Namespace: "ns", AgentCertificatesSince: time.Now()}
	if AgentCertificatesSince(wanted.Secret()).IsZero() {
		t.Error("the new Secret has no time")
	}
	secrets := fake.NewClientset(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "edge"}}).CoreV1().Secrets("ns")
	current, err := secrets.Get(t.Context(), "edge", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	after, _, _, err := wanted.Write(t.Context(), secrets, current, false)
	if err != nil || !AgentCertificatesSince(after).IsZero() {
		t.Errorf("%v: %v", err, after.Annotations)
	}
}
