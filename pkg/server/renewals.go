// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"crypto/x509"
	"fmt"
	"sync"
	"time"

	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/klog/v2"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/pki"
	"github.com/oam-dev/cluster-gateway/pkg/proxy"
	"github.com/oam-dev/cluster-gateway/pkg/registry"
	"github.com/oam-dev/cluster-gateway/pkg/rotation"
)

// renewals renew the credentials of clusters.
type renewals struct {
	clusters *registry.Store
	tokens   *rotation.Tokens
	agents   *rotation.Agents
	upkeep   *rotation.Upkeep
	// tunnel is nil unless the tunnel server is embedded.
	tunnel *embeddedTunnel
}

// newRenewals returns renewals that are idle.
func newRenewals(c *Config, clusters *registry.Store, handler *proxy.Handler, routes dialers, tunnel *embeddedTunnel, others *replicas, metrics *rotation.Metrics) *renewals {
	logger := klog.Background().WithName("rotation")
	way := rotation.Route{Dialer: others.peerDialer(routes.dialer), Shared: handler.RoundTripper}
	secrets := c.Hub.Client.CoreV1().Secrets(c.Hub.SecretNamespace)
	agents := rotation.AgentsConfig{
		Clusters: clusters, Route: way, Secrets: secrets, Authority: (&storedAuthority{secrets: secrets}).get,
		Lifetime: c.Tunnel.AgentLifetime, Logger: logger, Metrics: metrics,
	}
	if tunnel != nil {
		agents.Connected = tunnel.server.AgentCertificate
		if own, ok := tunnel.certificates.(keeperCertificates); ok {
			agents.Authority = own.keeper.Authority
		}
	}
	if others != nil {
		agents.Elsewhere = others.Elsewhere
	}
	return &renewals{
		clusters: clusters, tunnel: tunnel, agents: rotation.NewAgents(agents),
		tokens: rotation.NewTokens(rotation.TokensConfig{
			Clusters: clusters, Route: way, Secrets: secrets, RenewAfter: c.RenewTokensAfter, Logger: logger, Metrics: metrics,
		}),
		upkeep: rotation.NewUpkeep(rotation.UpkeepConfig{
			Clusters: clusters, Route: way, Secrets: secrets, Interval: c.UpkeepInterval, Logger: logger, Metrics: metrics,
		}),
	}
}

// failures returns what could not be renewed for a cluster, by the type of its condition.
func (r *renewals) failures(name string) map[string]error {
	failures := map[string]error{
		v1alpha1.ConditionCredentialValid:  r.tokens.Failure(name),
		v1alpha1.ConditionCertificateValid: r.agents.Failure(name),
	}
	if failures[v1alpha1.ConditionCertificateValid] == nil {
		failures[v1alpha1.ConditionCertificateValid] = r.upkeep.Failure(name)
	}
	if failures[v1alpha1.ConditionCertificateValid] == nil && r.tunnel != nil {
		if c, ok := r.clusters.Get(name); ok && c.Route == cluster.RouteTunnel {
			failures[v1alpha1.ConditionCertificateValid] = r.tunnel.endsSoon(time.Now())
		}
	}
	return failures
}

// agentsChanged tries again what has failed because a cluster had no agent, such as right after the
// start.
func (r *renewals) agentsChanged(name string, agents int) {
	if agents == 0 {
		return
	}
	r.tokens.Retry(name)
	r.agents.Retry(name)
	r.upkeep.Retry(name)
}

// agentCertificate returns the certificate of a cluster's agents. It is nil if it is not known.
func (r *renewals) agentCertificate(name string) *x509.Certificate {
	if r.tunnel != nil {
		if cert := r.tunnel.server.AgentCertificate(name); cert != nil {
			return cert
		}
	}
	return r.agents.Certificate(name) // also if its agents are connected to another replica
}

// soonAfter is the part of its lifetime after which a certificate expires soon. Certificates are
// renewed after 80 %, so this one was not.
const soonAfter = 0.9

// expiresSoon returns an error if cert expires soon. cert can be nil.
func expiresSoon(what string, cert *x509.Certificate, now time.Time) error {
	if cert == nil {
		return nil
	}
	remaining := time.Duration((1 - soonAfter) * float64(pki.Lifetime(cert)))
	if now.After(cert.NotAfter.Add(-remaining)) {
		return &expiresSoonError{what, cert.NotAfter}
	}
	return nil
}

// expiresSoonError is about a certificate that belongs to more than one cluster.
type expiresSoonError struct {
	what    string
	expires time.Time
}

// Error says what expires, and when.
func (e *expiresSoonError) Error() string {
	return fmt.Sprintf("%s, which all clusters behind a tunnel depend on, expires at %s", e.what, e.expires.UTC().Format(time.RFC3339))
}

// Reason is that of the condition CertificateValid.
func (*expiresSoonError) Reason() string { return v1alpha1.ReasonExpiresSoon }

// storedAuthority reads the tunnel's CA from the hub's Secret, for a gateway that does not keep
// that Secret itself. agent-bootstrap issues certificates with the same CA.
type storedAuthority struct {
	secrets corev1client.SecretInterface

	mu      sync.Mutex
	current *pki.Authority
	read    time.Time
}

// authorityMaxAge is how long a CA that was read is used, and authorityTimeout bounds a read.
const (
	authorityMaxAge  = time.Minute
	authorityTimeout = 5 * time.Second
)

func (s *storedAuthority) get() *pki.Authority {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.read) < authorityMaxAge {
		return s.current
	}
	s.read = time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), authorityTimeout)
	defer cancel()
	a, err := pki.Load(ctx, s.secrets)
	if err != nil {
		a = nil // without a CA, agents are not renewed
	}
	s.current = a
	return a
}
