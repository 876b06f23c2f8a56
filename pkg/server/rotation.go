// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"crypto/x509"
	"fmt"
	"sync"
	"time"

	"github.com/spf13/pflag"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/klog/v2"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/pki"
	"github.com/oam-dev/cluster-gateway/pkg/rotation"
)

// RotationOptions are for tests, and hidden: kube-apiserver gives out no token for less than ten minutes.
type RotationOptions struct {
	// RenewTokensAfter is the age at which tokens are renewed; 0: by their lives.
	RenewTokensAfter time.Duration
}

// NewRotationOptions returns the defaults.
func NewRotationOptions() *RotationOptions { return &RotationOptions{} }

// AddFlags adds the flags of the group, hidden.
func (o *RotationOptions) AddFlags(fs *pflag.FlagSet) {
	const name = "rotation-renew-tokens-after"
	fs.DurationVar(&o.RenewTokensAfter, name, o.RenewTokensAfter, "Age at which the tokens of clusters are renewed. 0: 80 % of their lives.")
	_ = fs.MarkHidden(name) // it exists
}

// newRotation makes what renews the credentials of clusters.
func (s *Server) newRotation(secrets corev1client.SecretInterface) {
	logger := klog.Background().WithName("rotation")
	s.tokens = rotation.NewTokens(rotation.TokensConfig{
		Clusters: s.store, Route: s.proxy.RoundTripper, Secrets: secrets, RenewAfter: s.options.Rotation.RenewTokensAfter,
		Logger: logger,
	})
	authority := (&storedAuthority{secrets: secrets}).get
	if k := s.tunnels.keeper(); k != nil {
		authority = k.Authority
	}
	s.agents = rotation.NewAgents(rotation.AgentsConfig{
		Clusters: s.store, Route: s.proxy.RoundTripper, Authority: authority, Connected: s.tunnels.agentCertificate,
		Lifetime: s.options.Tunnel.AgentLifetime, Logger: logger,
	})
}

// renewalFailures are what could not be renewed for a cluster, by the type of the condition that it belongs to.
func (s *Server) renewalFailures(name string) map[string]error {
	failures := map[string]error{v1alpha1.ConditionCredentialValid: s.tokens.Failure(name), v1alpha1.ConditionCertificateValid: s.agents.Failure(name)}
	if failures[v1alpha1.ConditionCertificateValid] == nil {
		if c, ok := s.store.Get(name); ok && c.Route == cluster.RouteTunnel {
			failures[v1alpha1.ConditionCertificateValid] = s.tunnelEnding(time.Now())
		}
	}
	return failures
}

// soonAfter is the part of its life after which a certificate that is renewed at 80 % of it has not been renewed.
const soonAfter = 0.9

// tunnelEnding is that a certificate which every cluster behind a tunnel depends on ends soon: the user's own, or one that cannot be renewed.
func (s *Server) tunnelEnding(now time.Time) error {
	c := s.tunnels.certificates
	if c == nil {
		return nil
	}
	for _, it := range []struct {
		what string
		get  func() *x509.Certificate
	}{{"the serving certificate of the tunnel", c.serving}, {"the CA of the tunnel", c.ca}} {
		cert := it.get()
		if cert == nil {
			continue
		}
		if rest := (1 - soonAfter) * float64(pki.Lifetime(cert)); now.After(cert.NotAfter.Add(-time.Duration(rest))) {
			return &endsSoonError{it.what, cert.NotAfter}
		}
	}
	return nil
}

// endsSoonError is that what is not the cluster's alone ends soon.
type endsSoonError struct {
	what string
	end  time.Time
}

// Error says what ends, and when.
func (e *endsSoonError) Error() string {
	return fmt.Sprintf("%s, which all clusters behind a tunnel depend on, ends at %s", e.what, e.end.UTC().Format(time.RFC3339))
}

// Reason is that of the condition CertificateValid.
func (*endsSoonError) Reason() string { return v1alpha1.ReasonExpiresSoon }

// agentCertificate is that of a cluster's agents, as far as it is known.
func (s *Server) agentCertificate(name string) *x509.Certificate {
	if s.tunnels.agentCertificate != nil {
		return s.tunnels.agentCertificate(name)
	}
	return s.agents.Certificate(name)
}

// storedAuthority is the CA in the hub's Secret, for a gateway that does not keep it itself: agent-bootstrap issues with it, too.
type storedAuthority struct {
	secrets corev1client.SecretInterface

	mu      sync.Mutex
	current *pki.Authority
	read    time.Time
}

// readAgain is how old what was read may be, and readTimeout how long reading it may take.
const (
	readAgain   = time.Minute
	readTimeout = 5 * time.Second
)

func (s *storedAuthority) get() *pki.Authority {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.read) < readAgain {
		return s.current
	}
	s.read = time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), readTimeout)
	defer cancel()
	a, err := pki.Load(ctx, s.secrets)
	if err != nil {
		a = nil // there is none, as far as this gateway can tell
	}
	s.current = a
	return a
}
