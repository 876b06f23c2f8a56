// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package rotation

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/klog/v2"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/pki"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

// agentInterval is how often the Secret of an agent is read although nothing is due: somebody may
// have changed it. It varies by a tenth, so that clusters are not read at the same time.
const agentInterval = time.Hour

// AgentsConfig is what Agents needs.
type AgentsConfig struct {
	Clusters Clusters
	Route    Route
	// Secrets are those of the clusters.
	Secrets corev1client.SecretInterface
	// Authority returns the current CA of the tunnel, or nil if there is none or it is not known.
	Authority func() *pki.Authority
	// Connected, if set, returns the certificate with which the agents of a cluster have connected.
	// If they have several, it is the one that expires first. It returns nil if no agent is
	// connected. It is not set if agents connect to another process.
	Connected func(cluster string) *x509.Certificate
	// Elsewhere, if set, reports whether agents of the cluster are connected to another replica only.
	// Their certificate is then known from their Secret alone.
	Elsewhere func(cluster string) bool
	// Lifetime is the longest lifetime of new certificates. 0 means pki.DefaultAgentLifetime. A
	// certificate with a shorter lifetime is replaced by one with the same lifetime.
	Lifetime time.Duration
	// Logger logs renewals. Its zero value logs nothing.
	Logger klog.Logger
	// Metrics, if set, record the results of renewals.
	Metrics *Metrics
	// Now is the clock. Nil means time.Now.
	Now func() time.Time
}

// Agents renews the certificates of agents that run as Pods, and gives them the tunnel's CA bundle
// when that has changed. It is safe for concurrent use.
type Agents struct {
	cfg      AgentsConfig
	renewals renewals

	mu    sync.Mutex
	known map[string]knownAgent
}

var _ renewer = (*Agents)(nil)

// knownAgent is what was last read from a cluster, or written to it.
type knownAgent struct {
	// uid is that of the cluster's Secret. A cluster that was registered again has another one.
	uid types.UID
	// certificate is the one in the agent's Secret. It is nil if no agent runs as Pods.
	certificate *x509.Certificate
	// bundle is the CA bundle that the Secret was compared with.
	bundle []byte
	// request is the ID of the request for a rotation that was there.
	request string
	// again is when the Secret is read again.
	again time.Time
}

// NewAgents returns an Agents that is idle.
func NewAgents(cfg AgentsConfig) *Agents {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Lifetime <= 0 {
		cfg.Lifetime = pki.DefaultAgentLifetime
	}
	a := &Agents{cfg: cfg, known: map[string]knownAgent{}}
	a.renewals = newRenewals(a, "renew the certificate of the agent", cfg.Clusters, cfg.Logger, cfg.Now, cfg.Metrics, taskAgent)
	return a
}

// OnChange subscribes f to clusters whose renewal fails for the first time, or succeeds again. f
// must not block. OnChange must not be called after Run.
func (a *Agents) OnChange(f func(name string)) { a.renewals.subscribe(f) }

// Retry tries again what has failed for a cluster, without the usual wait. Call it when the cluster
// can be reached again, such as when an agent has connected. It does not block.
func (a *Agents) Retry(name string) { a.renewals.retry(name) }

// Run renews until ctx is done, and waits for renewals in progress. Only one Run may be active at a
// time.
func (a *Agents) Run(ctx context.Context) error {
	a.mu.Lock()
	a.known = map[string]knownAgent{} // another replica may have been the leader meanwhile
	a.mu.Unlock()
	a.renewals.run(ctx)
	return nil
}

// Failure returns why the certificate of a cluster's agent could not be renewed. It is nil if it
// was renewed, or if it need not be renewed yet: an early failure is tried again, and not reported.
func (a *Agents) Failure(name string) error {
	err := a.renewals.failure(name)
	var early *earlyError
	if errors.As(err, &early) {
		return nil
	}
	return err
}

// Certificate returns the certificate in the Secret of a cluster's agent, or nil if this replica
// has not read that Secret.
func (a *Agents) Certificate(name string) *x509.Certificate {
	k, _ := a.knownOf(name)
	return k.certificate
}

func (a *Agents) knownOf(name string) (knownAgent, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	k, ok := a.known[name]
	return k, ok
}

// earlyError is a failure before the renewal is due.
type earlyError struct{ error }

func (e *earlyError) Unwrap() error { return e.error }

// NotOursError means that the gateway cannot renew a certificate, and somebody else must do so
// soon.
type NotOursError struct{ text string }

// Error says what to do.
func (e *NotOursError) Error() string { return e.text }

// Reason is that of the condition CertificateValid.
func (e *NotOursError) Reason() string { return v1alpha1.ReasonExpiresSoon }

// due is whether an agent's Secret must be read now. It cannot be read while no agent is connected.
func (a *Agents) due(c *cluster.Cluster) bool {
	if c.Err() != nil || c.ManagedBy != v1alpha1.ManagedByAgentBootstrap || c.Route != cluster.RouteTunnel {
		return false
	}
	if a.cfg.Connected != nil && a.cfg.Connected(c.Name) == nil && (a.cfg.Elsewhere == nil || !a.cfg.Elsewhere(c.Name)) {
		return false
	}
	k, looked := a.knownOf(c.Name)
	if !looked || c.Rotation.WantsCertificate() && k.request != c.Rotation.ID || k.uid != c.UID || !a.cfg.Now().Before(k.again) {
		return true
	}
	authority := a.cfg.Authority()
	return authority != nil && !bytes.Equal(k.bundle, authority.Bundle())
}

// current returns the certificate that decides what is due: the one in the agent's Secret or, if
// there is no Secret, the one with which the agent is connected.
func (a *Agents) current(c *cluster.Cluster) *x509.Certificate {
	if cert := a.Certificate(c.Name); cert != nil {
		return cert
	}
	if a.cfg.Connected != nil {
		return a.cfg.Connected(c.Name)
	}
	return nil
}

func (a *Agents) expiry(c *cluster.Cluster) (time.Time, bool) {
	if cert := a.current(c); cert != nil {
		return cert.NotAfter, true
	}
	return time.Time{}, false
}

// renew reads an agent's Secret, and renews the certificate if it is due.
func (a *Agents) renew(ctx context.Context, c *cluster.Cluster) error {
	cert, authority, err := a.keep(ctx, c)
	switch {
	case err == nil:
	case apierrors.IsConflict(err):
		return nil // somebody else has changed it: it is read again at once
	default:
		if c.Rotation.WantsCertificate() {
			a.renewals.reportFailure(ctx, a.cfg.Secrets, c, err)
		}
		return a.failed(c, authority, err)
	}
	now := a.cfg.Now()
	again := now.Add(agentInterval - agentInterval/10 + rand.N(agentInterval/5))
	known := knownAgent{uid: c.UID, certificate: cert, request: c.Rotation.ID}
	if authority != nil {
		known.bundle = authority.Bundle()
	}
	if cert == nil && a.cfg.Connected != nil {
		cert = a.cfg.Connected(c.Name)
	}
	if cert != nil {
		if at := pki.RenewAt(cert); at.After(now) && at.Before(again) {
			again = at
		}
	}
	known.again = again
	a.mu.Lock()
	a.known[c.Name] = known
	a.mu.Unlock()
	if c.Rotation.WantsCertificate() {
		if err := a.markRotated(ctx, c, known.certificate); err != nil {
			return err
		}
	}
	if known.certificate == nil && cert != nil && !now.Before(pki.RenewAt(cert)) {
		return &NotOursError{fmt.Sprintf("the certificate of the cluster's agent expires at %s, and the gateway cannot renew it: the agent does not run as Deployment %s/%s in the cluster. Renew it with: agent-bootstrap rotate %s --out-dir DIR",
			cert.NotAfter.UTC().Format(time.RFC3339), registration.AgentNamespace, registration.AgentName, c.Name)}
	}
	return nil
}

// failed distinguishes failures that matter from those that do not matter yet.
func (a *Agents) failed(c *cluster.Cluster, authority *pki.Authority, err error) error {
	k, looked := a.knownOf(c.Name)
	stale := looked && authority != nil && !bytes.Equal(k.bundle, authority.Bundle())
	cert := a.current(c)
	if !stale && !c.Rotation.WantsCertificate() && (cert == nil || a.cfg.Now().Before(pki.RenewAt(cert))) {
		return &earlyError{err}
	}
	if cert == nil && !c.Rotation.WantsCertificate() {
		return fmt.Errorf("the cluster's agent could not be given the tunnel's new CA: %w", err)
	}
	if cert == nil {
		return fmt.Errorf("the certificate of the cluster's agent could not be replaced: %w", err)
	}
	return fmt.Errorf("the certificate of the cluster's agent, which expires at %s, could not be renewed: %w", cert.NotAfter.UTC().Format(time.RFC3339), err)
}

// keep makes sure that the agent has a good certificate, and uses it. It returns the certificate,
// which is nil if no agent runs as Pods, and the CA that it was compared with.
func (a *Agents) keep(ctx context.Context, c *cluster.Cluster) (*x509.Certificate, *pki.Authority, error) {
	authority := a.cfg.Authority()
	conn, err := a.cfg.Route.open(c, a.cfg.Now())
	if err != nil {
		return nil, authority, err
	}
	defer conn.close()
	client := conn.kube
	deployment, err := client.AppsV1().Deployments(registration.AgentNamespace).Get(ctx, registration.AgentName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, authority, nil
	}
	if err != nil {
		return nil, authority, err
	}
	secret, err := client.CoreV1().Secrets(registration.AgentNamespace).Get(ctx, registration.AgentName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, authority, nil
	}
	if err != nil {
		return nil, authority, err
	}
	pair := registration.AgentPairOf(secret)
	chain, err := pki.ParseCertificates(pair.Certificate)
	if err != nil {
		return nil, authority, fmt.Errorf("the Secret %s/%s of the cluster cannot be read: %w", registration.AgentNamespace, registration.AgentName, err)
	}
	cert := chain[0]
	now := a.cfg.Now()
	switch good := now.Before(pki.RenewAt(cert)); {
	case authority == nil && good && !c.Rotation.WantsCertificate():
		return cert, nil, nil
	case authority == nil:
		return cert, nil, errors.New("the hub has no CA to issue another with (Secret " + pki.CASecret + ")")
	case good && bytes.Equal(pair.CA, authority.Bundle()) && !c.Rotation.WantsCertificate():
		if deployment.Spec.Template.Annotations[v1alpha1.AnnotationAgentCertificate] == pair.Hash() {
			return cert, authority, nil
		}
		return cert, authority, registration.RollAgent(ctx, client, pair) // where an earlier attempt failed
	}
	if err := checkReplaceable(authority, c.Name, chain, now); err != nil {
		return nil, authority, err
	}
	if c.Rotation.WantsCertificate() && c.Rotation.Revoke {
		if err := registration.AwaitNextSecond(ctx); err != nil {
			return nil, authority, err
		}
	}
	next, issued, err := registration.IssueAgentPair(authority, c.Name, a.lifetime(c, cert, authority), now)
	if err != nil {
		return nil, authority, err
	}
	// Before it is delivered: if the clock of this replica is behind, it would be refused.
	if err := registration.AcceptAgentCertificate(ctx, a.cfg.Secrets, c.Name, c.UID, issued); err != nil {
		return nil, authority, err
	}
	if err := registration.DeliverAgentCertificate(ctx, client, secret, next); err != nil {
		return nil, authority, err
	}
	a.cfg.Logger.Info("The certificate of a cluster's agent has been renewed, and the agent is restarting", "cluster", c.Name, "until", issued.NotAfter)
	return issued, authority, nil
}

// checkReplaceable refuses to replace a certificate that is not the agent's, or that another CA
// issued: a server that accepts that CA need not accept this one. An expired certificate may be
// replaced.
func checkReplaceable(authority *pki.Authority, name string, chain []*x509.Certificate, now time.Time) error {
	if now.After(chain[0].NotAfter) {
		now = chain[0].NotAfter
	}
	if err := registration.VerifyAgentCertificate(chain, authority.IssuedPool(), name, now); err != nil {
		return fmt.Errorf("the certificate in the Secret %s/%s of the cluster is not replaced: %w (replace it with agent-bootstrap rotate %s)",
			registration.AgentNamespace, registration.AgentName, err, name)
	}
	return nil
}

// markRotated records that a request was carried out, or that there is no agent whose certificate
// could be replaced: then current is nil. If the request says so, earlier certificates are revoked.
func (a *Agents) markRotated(ctx context.Context, c *cluster.Cluster, current *x509.Certificate) error {
	annotations := map[string]string{v1alpha1.AnnotationRotatedCertificate: c.Rotation.ID}
	switch {
	case current == nil:
		annotations[v1alpha1.AnnotationRotatedCertificate] += cluster.RotatedNothing
	case c.Rotation.Revoke:
		annotations[v1alpha1.AnnotationAgentCertificatesSince] = pki.IssuedAt(current).UTC().Format(time.RFC3339)
	}
	patch, err := registration.MergePatch(&metav1.ObjectMeta{UID: c.UID}, map[string]any{"metadata": map[string]any{"annotations": annotations}})
	if err != nil {
		return err
	}
	_, err = a.cfg.Secrets.Patch(ctx, c.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: registration.RenewalFieldManager})
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return nil // another registration
	}
	return err
}

// lifetime returns the lifetime of the certificate that replaces cert.
func (a *Agents) lifetime(c *cluster.Cluster, cert *x509.Certificate, authority *pki.Authority) time.Duration {
	if wanted := c.Rotation.CertificateLifetime.Duration; c.Rotation.WantsCertificate() && wanted > 0 {
		return wanted
	}
	if lifetime, ok := registration.CertificateLifetime(cert, authority.AgentCertificates()); ok {
		return min(a.cfg.Lifetime, lifetime)
	}
	return a.cfg.Lifetime
}
