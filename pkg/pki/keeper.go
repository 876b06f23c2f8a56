// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"
)

// KeeperConfig configures a Keeper.
type KeeperConfig struct {
	// Client and Namespace are the hub's client and the namespace of the Secrets.
	Client    kubernetes.Interface
	Namespace string
	// CASecret and ServingSecret are the names of the Secrets. Empty means those of the tunnel.
	CASecret, ServingSecret string
	// AgentsCASecret is the name of the Secret with the CA of agents' certificates: the constant
	// AgentsCASecret, or empty if the CA in CASecret issues the certificates of clients, too.
	AgentsCASecret string
	// Hosts are the DNS names and IP addresses in the serving certificate. There must be at least
	// one.
	Hosts []string
	// Organization, if set, makes the serving certificate a client certificate, too, with this
	// organization (O) in its subject. It is for servers that are each other's clients.
	Organization string
	// MinVersion is the oldest version of TLS that the server accepts. 0 means TLS 1.3.
	MinVersion uint16
	// CALifetime and ServingLifetime are the lifetimes of new certificates. 0 means the defaults.
	CALifetime, ServingLifetime time.Duration
	// Logger logs renewals. Its zero value logs nothing.
	Logger klog.Logger
}

// Keeper provides the certificates of one server, either the tunnel's or the gateway's own. In
// every replica, [Keeper.Follow] follows their Secrets. In the leader, [Keeper.Renew] also creates
// and renews them. A Keeper is safe for concurrent use.
type Keeper struct {
	cfg KeeperConfig
	// The subscribers do not change once the Keeper runs.
	publish         []func(ctx context.Context, bundle []byte) error
	onTrustChange   []func(*x509.CertPool)
	onServingChange []func()

	mu sync.RWMutex
	// authority is the CA. It issues certificates of agents from agents, which is nil if there is no
	// CA of agents, or if it is not known yet.
	authority, agents *Authority
	serving           *servingPair
	// current is built from authority and serving. It is nil until both are known.
	current *tls.Config
	// changed wakes Renew when the CA or the serving certificate has changed.
	changed chan struct{}
}

// servingPair is a serving certificate with its key.
type servingPair struct {
	tls.Certificate
	certPEM, keyPEM []byte
	// managed is false if the user provides the pair.
	managed bool
}

// NewKeeper returns a Keeper that has no certificates yet.
func NewKeeper(cfg KeeperConfig) *Keeper {
	cfg.CASecret, cfg.ServingSecret = cmp.Or(cfg.CASecret, CASecret), cmp.Or(cfg.ServingSecret, ServingSecret)
	cfg.MinVersion = cmp.Or(cfg.MinVersion, tls.VersionTLS13)
	return &Keeper{cfg: cfg, changed: make(chan struct{}, 1)}
}

// OnPublish subscribes f to the bundle that peers have to trust. Renew calls f regularly, and
// always before the server uses a certificate that a new CA issued. The serving certificate is
// renewed even if f fails. Do not call OnPublish after Renew.
func (k *Keeper) OnPublish(f func(ctx context.Context, bundle []byte) error) {
	k.publish = append(k.publish, f)
}

// OnTrustChange calls f when the CAs that verify agents change. f must not block. Do not call
// OnTrustChange after LoadOrCreate or Follow.
func (k *Keeper) OnTrustChange(f func(*x509.CertPool)) {
	k.onTrustChange = append(k.onTrustChange, f)
}

// OnServingChange calls f when the serving certificate changes. f must not block. Do not call
// OnServingChange after LoadOrCreate or Follow.
func (k *Keeper) OnServingChange(f func()) {
	k.onServingChange = append(k.onServingChange, f)
}

// errNotLoaded refuses connections until the certificates have been read.
var errNotLoaded = errors.New("the certificates have not been read from the hub yet")

// TLS returns a server configuration that requires client certificates of agents. It always uses
// the current certificates.
func (k *Keeper) TLS() *tls.Config {
	return &tls.Config{
		MinVersion: k.cfg.MinVersion, NextProtos: []string{"h2"}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: x509.NewCertPool(),
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			k.mu.RLock()
			defer k.mu.RUnlock()
			if k.current == nil {
				return nil, errNotLoaded
			}
			return k.current, nil
		},
	}
}

// Ready returns an error until the certificates have been read.
func (k *Keeper) Ready() error {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.current == nil {
		return errNotLoaded
	}
	return nil
}

// Authority returns the CA, or nil if it has not been read yet.
func (k *Keeper) Authority() *Authority {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.authority
}

// Serving returns the serving certificate, or nil if it has not been read yet.
func (k *Keeper) Serving() *x509.Certificate {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.serving == nil {
		return nil
	}
	return k.serving.Leaf
}

// Pair returns the serving certificate and its key in PEM, or nil if they have not been read yet.
func (k *Keeper) Pair() (cert, key []byte) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.serving == nil {
		return nil, nil
	}
	return k.serving.certPEM, k.serving.keyPEM
}

// Bundle returns the CAs that verify the serving certificate. It returns nil if they are not known
// because the user provides the serving certificate.
func (k *Keeper) Bundle() []byte {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.authority == nil || k.serving == nil || !k.serving.managed {
		return nil
	}
	return k.authority.Bundle()
}

// setAuthorityFrom uses the CA in the Secret from now on.
func (k *Keeper) setAuthorityFrom(s *corev1.Secret) error {
	a, err := FromSecret(s)
	if err != nil {
		return err
	}
	k.setAuthority(a)
	return nil
}

func (k *Keeper) setAuthority(a *Authority) {
	k.setAuthorities(k.cfg.CASecret, a, func() { k.authority = a })
}

// setAgentsFrom uses the CA of agents in the Secret from now on.
func (k *Keeper) setAgentsFrom(s *corev1.Secret) error {
	agents, err := agentsFromSecret(s)
	if err != nil {
		return err
	}
	k.setAgents(agents)
	return nil
}

func (k *Keeper) setAgents(agents *Authority) {
	k.setAuthorities(k.cfg.AgentsCASecret, agents, func() { k.agents = agents })
}

// setAuthorities calls set with the lock held. It tells the subscribers if other CAs are trusted
// after that.
func (k *Keeper) setAuthorities(secret string, a *Authority, set func()) {
	k.mu.Lock()
	before := k.authority
	set()
	if k.authority == nil {
		k.mu.Unlock()
		return
	}
	k.authority = k.authority.withAgents(k.agents)
	after := k.authority
	k.rebuildLocked()
	k.mu.Unlock()
	if before != nil && bytes.Equal(before.Bundle(), after.Bundle()) && slices.EqualFunc(before.trustedForAgents(), after.trustedForAgents(), (*x509.Certificate).Equal) {
		return
	}
	k.cfg.Logger.Info("Using the CA of a Secret", "secret", secret, "ca", a)
	for _, f := range k.onTrustChange {
		f(after.AgentPool())
	}
	k.signal()
}

// setServingFrom uses the serving certificate in the Secret from now on.
func (k *Keeper) setServingFrom(s *corev1.Secret) error {
	pair := servingPair{certPEM: s.Data[corev1.TLSCertKey], keyPEM: s.Data[corev1.TLSPrivateKeyKey], managed: managed(s)}
	var err error
	if pair.Certificate, err = tls.X509KeyPair(pair.certPEM, pair.keyPEM); err != nil {
		return fmt.Errorf("the Secret %s does not hold a valid serving certificate and key: %w", s.Name, err)
	}
	k.mu.Lock()
	same := k.serving != nil && k.serving.managed == pair.managed && bytes.Equal(k.serving.certPEM, pair.certPEM) && bytes.Equal(k.serving.keyPEM, pair.keyPEM)
	k.serving = &pair
	k.rebuildLocked()
	k.mu.Unlock()
	if same {
		return nil
	}
	for _, f := range k.onServingChange {
		f()
	}
	k.signal()
	return nil
}

func (k *Keeper) rebuildLocked() {
	if k.authority == nil || k.serving == nil {
		return
	}
	k.current = &tls.Config{
		MinVersion: k.cfg.MinVersion, NextProtos: []string{"h2"}, ClientAuth: tls.RequireAndVerifyClientCert,
		ClientCAs: k.authority.AgentPool(), Certificates: []tls.Certificate{k.serving.Certificate}, SessionTicketsDisabled: true,
	}
}

func (k *Keeper) signal() {
	select {
	case k.changed <- struct{}{}:
	default:
	}
}
