// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registration

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/oam-dev/cluster-gateway/pkg/pki"
)

func newAuthority(t *testing.T) *pki.Authority {
	t.Helper()
	authority, err := pki.NewAuthority(time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return authority
}

// TestVerifyAgentPair shows what a certificate must be to be that of a cluster's agent. The
// certificates come from pkg/pki, so the test fails if the organization is changed only there or
// only here.
func TestVerifyAgentPair(t *testing.T) {
	t.Parallel()
	authority, other := newAuthority(t), newAuthority(t)
	now := time.Now()
	agent, _, err := IssueAgentPair(authority, "edge", 30*time.Minute, now)
	if err != nil {
		t.Fatal(err)
	}
	pair := func(certificate, key []byte, err error) AgentPair {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return AgentPair{Certificate: certificate, Key: key}
	}
	for _, test := range []struct {
		name string
		pair AgentPair
		now  time.Time
		want error
		text string
	}{
		{name: "an agent's", pair: agent},
		{name: "an invitation's", pair: pair(authority.IssueInvitation("edge", time.Minute)), want: ErrInvitationCertificate},
		{name: "another organization's", pair: pair(authority.IssueServing([]string{"edge"}, time.Minute)), want: ErrNotAgentCertificate, text: "cluster.core.oam.dev:tunnel-agents"},
		{name: "another cluster's", pair: pair(authority.IssueAgent("west", time.Minute)), want: ErrOtherCluster, text: `"west"`},
		{name: "another CA's", pair: pair(other.IssueAgent("edge", time.Minute)), want: ErrUnknownAuthority, text: other.Certificate().Subject.CommonName},
		{name: "expired", pair: agent, now: now.Add(31 * time.Minute), text: "it expired at"},
		{name: "not valid yet", pair: agent, now: now.Add(-2 * time.Hour), text: "it is not valid before"},
		{name: "without its key", pair: AgentPair{Certificate: agent.Certificate}, text: "cannot be used"},
	} {
		if test.now.IsZero() {
			test.now = now
		}
		_, err := test.pair.Verify(authority.Bundle(), "edge", test.now)
		if test.want == nil && test.text == "" {
			if err != nil {
				t.Errorf("%s: %v", test.name, err)
			}
			continue
		}
		if err == nil || test.want != nil && !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
			t.Errorf("%s: got %v, want %v with %q", test.name, err, test.want, test.text)
		}
	}
	if _, err := pair(other.IssueAgent("edge", time.Minute)).Verify(nil, "edge", now); err != nil {
		t.Errorf("without a bundle, the issuer is checked: %v", err)
	}
	if _, err := agent.Verify([]byte("garbage"), "edge", now); err == nil {
		t.Error("a bundle without a certificate is accepted")
	}
}

// TestCertificateAfterRotation shows that a certificate of the previous CA is accepted while the
// bundle holds that CA, and that a lifetime that the CA cut short is not passed on.
func TestCertificateAfterRotation(t *testing.T) {
	t.Parallel()
	authority := newAuthority(t)
	now := time.Now()
	agent, cert, err := IssueAgentPair(authority, "edge", 10*time.Minute, now)
	if err != nil {
		t.Fatal(err)
	}
	rotated, err := authority.Rotated(time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := agent.Verify(rotated.Bundle(), "edge", now); err != nil {
		t.Error(err)
	}
	if lifetime, ok := CertificateLifetime(cert, rotated.Certificates()); !ok || lifetime != 10*time.Minute {
		t.Errorf("its lifetime is %s, %v", lifetime, ok)
	}
	_, cut, err := IssueAgentPair(authority, "edge", 10*time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	if lifetime, ok := CertificateLifetime(cut, authority.Certificates()); ok {
		t.Errorf("a certificate that expires with its CA was issued for %s", lifetime)
	}
}
