// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
)

// AnnotationTunnelCA on the Secret AgentsCASecret decides whether certificates of agents that the
// tunnel's CA itself has issued are accepted. RefuseTunnelCA refuses them. Any other value, and
// none, accepts them.
const (
	AnnotationTunnelCA = "cluster.core.oam.dev/agents-of-tunnel-ca"
	RefuseTunnelCA     = "refuse"
)

// newAgentsAuthority creates the CA of agents' certificates. The usage in its own certificate binds
// everything that it issues: a peer that trusts it accepts no server with one of its certificates.
func newAgentsAuthority(lifetime time.Duration) (*Authority, error) {
	return createAuthority(lifetime, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth})
}

// withAgents returns a copy of this CA, the tunnel's, that issues certificates of agents from
// another CA. If agents is nil, it issues them itself. A CA that the user provides always issues
// them itself: the user has decided what is trusted.
func (a *Authority) withAgents(agents *Authority) *Authority {
	combined := *a
	combined.agents = nil
	if !a.userProvided {
		combined.agents = agents
	}
	return &combined
}

// Agents returns the certificate of the CA that issues certificates of agents, if it is not this
// one. Otherwise, it returns nil. The caller must not change it.
func (a *Authority) Agents() *x509.Certificate {
	if a.agents == nil {
		return nil
	}
	return a.agents.Certificate()
}

// IssuedByTunnelCA reports whether the certificate of an agent is from the tunnel's CA itself,
// although there is a CA of agents. It compares names: the certificate must have been verified.
func (a *Authority) IssuedByTunnelCA(cert *x509.Certificate) bool {
	return a.agents != nil && slices.ContainsFunc(a.bundle, func(ca *x509.Certificate) bool { return bytes.Equal(cert.RawIssuer, ca.RawSubject) })
}

// AgentCertificates returns all CAs that have issued certificates of agents, also one from which
// they are not accepted any more. The caller must not change the certificates.
func (a *Authority) AgentCertificates() []*x509.Certificate {
	if a.agents == nil {
		return a.Certificates()
	}
	return slices.Concat(a.agents.bundle, a.bundle)
}

// trustedForAgents lists the CAs from which certificates of agents are accepted.
func (a *Authority) trustedForAgents() []*x509.Certificate {
	if a.agents != nil && a.agents.refuseTunnelCA {
		return a.agents.bundle
	}
	return a.AgentCertificates()
}

// IssuedPool returns the CAs that have issued certificates of agents, as a new pool. It is for the
// decision what may be replaced, not for what is accepted.
func (a *Authority) IssuedPool() *x509.CertPool { return newPool(a.AgentCertificates()) }

// AgentPool returns the CAs from which certificates of agents are accepted, as a new pool.
func (a *Authority) AgentPool() *x509.CertPool { return newPool(a.trustedForAgents()) }

// agentIssuer returns the CA that issues certificates of agents. A CA of agents that the tunnel's
// CA has not signed does not issue: replicas and commands of earlier versions, which know only the
// tunnel's CA, would not accept its certificates.
func (a *Authority) agentIssuer() *Authority {
	if a.agents != nil && (a.agents.refuseTunnelCA || a.agents.crossedBy(a.bundle)) {
		return a.agents
	}
	return a
}

// crossedBy reports whether one of cas has signed this CA.
func (a *Authority) crossedBy(cas []*x509.Certificate) bool {
	return slices.ContainsFunc(a.chain[1:], func(link *x509.Certificate) bool { return signedBy(link, cas) })
}

// signsAgents reports whether this CA can sign a CA of agents: it has to be the gateway's own, and
// to allow a CA below it.
func (a *Authority) signsAgents() bool { return !a.userProvided && !a.Certificate().MaxPathLenZero }

// crossSigned returns this CA with a cross-certificate of the tunnel's current CA. It returns
// itself if it has one. Otherwise it also drops cross-certificates that have expired, or of which
// no CA is known any more. Those of the tunnel's earlier CAs stay: a replica may not know the
// current one yet.
func (a *Authority) crossSigned(tunnel *Authority) (*Authority, error) {
	root, own := tunnel.Certificate(), a.Certificate()
	if a.crossedBy([]*x509.Certificate{root}) {
		return a, nil
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	cross := &x509.Certificate{
		SerialNumber: serial, Subject: own.Subject, NotBefore: time.Now().Add(-backdating), NotAfter: own.NotAfter,
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: own.KeyUsage, ExtKeyUsage: own.ExtKeyUsage,
	}
	if root.NotAfter.Before(cross.NotAfter) {
		cross.NotAfter = root.NotAfter
	}
	crossed, err := sign(cross, root, own.PublicKey, tunnel.reveal())
	if err != nil {
		return nil, err
	}
	next := *a
	next.chain = []*x509.Certificate{own, crossed}
	known := slices.Concat(tunnel.bundle, a.bundle)
	for _, link := range a.chain[1:] {
		if signedBy(link, known) {
			next.chain = append(next.chain, link)
		}
	}
	return &next, nil
}

// signedBy reports whether one of cas has signed a certificate that has not expired.
func signedBy(cert *x509.Certificate, cas []*x509.Certificate) bool {
	return time.Now().Before(cert.NotAfter) && slices.ContainsFunc(cas, func(ca *x509.Certificate) bool { return cert.CheckSignatureFrom(ca) == nil })
}

// loadAgents returns the CA of agents. It returns nil if there is none that can be used: then the
// tunnel's CA issues certificates of agents, as in earlier versions. Who may not read it is treated
// as if there were none: it may have rights of an earlier version.
func loadAgents(ctx context.Context, secrets corev1client.SecretInterface) (*Authority, error) {
	secret, err := secrets.Get(ctx, AgentsCASecret, metav1.GetOptions{})
	if apierrors.IsNotFound(err) || apierrors.IsForbidden(err) {
		return nil, nil //nolint:nilnil // no CA of agents is a valid answer
	}
	if err != nil {
		return nil, fmt.Errorf("get the Secret %s: %w", AgentsCASecret, err)
	}
	agents, err := agentsFromSecret(secret)
	if err != nil {
		return nil, nil //nolint:nilerr,nilnil // the Keeper reports it
	}
	return agents, nil
}

// errUnusable is why the CA of agents is not used, although the hub has answered.
var errUnusable = errors.New("the CA of agents cannot be used")

// agentsFromSecret parses the CA of agents. It must be the gateway's own.
func agentsFromSecret(secret *corev1.Secret) (*Authority, error) {
	agents, err := FromSecret(secret)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", errUnusable, err)
	case agents.userProvided:
		return nil, fmt.Errorf("%w: Secret %s: %w", errUnusable, secret.Name, ErrNotManaged)
	case !slices.Equal(agents.Certificate().ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}):
		return nil, fmt.Errorf("%w: the CA in the Secret %s must be for client certificates only", errUnusable, secret.Name)
	}
	return agents, nil
}

// keepAgents returns the CA of agents as it should be: it exists, and the tunnel's current CA has
// signed it. With rotate, it is replaced if that is due. known is what to create again if its
// Secret was deleted, or nil. Several replicas may call keepAgents at the same time.
func keepAgents(ctx context.Context, secrets corev1client.SecretInterface, tunnel, known *Authority, lifetime time.Duration, rotate bool) (*Authority, error) {
	secret, err := secrets.Get(ctx, AgentsCASecret, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return createAgents(ctx, secrets, tunnel, known, lifetime)
	}
	if err != nil {
		return nil, fmt.Errorf("get the Secret %s: %w", AgentsCASecret, err)
	}
	stored, err := agentsFromSecret(secret)
	if err != nil {
		return nil, err
	}
	next := stored
	if rotate && !time.Now().Before(RenewAt(stored.Certificate())) {
		if next, err = stored.Rotated(lifetime); err != nil {
			return nil, fmt.Errorf("%w: %w", errUnusable, err)
		}
	}
	if next, err = next.crossSigned(tunnel); err != nil {
		return nil, fmt.Errorf("%w: %w", errUnusable, err)
	}
	if next == stored {
		return stored, nil
	}
	created, err := next.secretNamed(AgentsCASecret)
	if err != nil {
		return nil, err
	}
	err = patchData(ctx, secrets, secret, created.Data)
	switch {
	case apierrors.IsConflict(err): // somebody else has changed it
		if secret, err = secrets.Get(ctx, AgentsCASecret, metav1.GetOptions{}); err != nil {
			return nil, fmt.Errorf("get the Secret %s: %w", AgentsCASecret, err)
		}
		return agentsFromSecret(secret)
	case err != nil:
		return nil, fmt.Errorf("replace the CA in the Secret %s: %w", AgentsCASecret, err)
	}
	return next, nil
}

// createAgents creates the Secret with the CA of agents: known, or a new CA.
func createAgents(ctx context.Context, secrets corev1client.SecretInterface, tunnel, known *Authority, lifetime time.Duration) (*Authority, error) {
	agents := known
	if agents == nil {
		var err error
		if agents, err = newAgentsAuthority(lifetime); err != nil {
			return nil, fmt.Errorf("create the CA for the Secret %s: %w", AgentsCASecret, err)
		}
	}
	agents, err := agents.crossSigned(tunnel)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUnusable, err)
	}
	secret, err := agents.secretNamed(AgentsCASecret)
	if err != nil {
		return nil, err
	}
	_, err = secrets.Create(ctx, secret, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		if secret, err = secrets.Get(ctx, AgentsCASecret, metav1.GetOptions{}); err == nil {
			return agentsFromSecret(secret)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("create the Secret %s: %w", AgentsCASecret, err)
	}
	return agents, nil
}
