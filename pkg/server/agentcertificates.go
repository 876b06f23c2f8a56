// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/pki"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
	"github.com/oam-dev/cluster-gateway/pkg/registry"
)

// registrationTime is how long after a certificate was issued its agent may connect although the
// cluster has no Secret yet: a registration may be under way.
const registrationTime = time.Hour

// agentAcceptance decides which certificates of agents are accepted, of those that the tunnel's CA
// has issued. It is safe for concurrent use.
type agentAcceptance struct {
	clusters interface {
		Get(name string) (*cluster.Cluster, bool)
		HasSynced() bool
	}
	now func() time.Time

	mu sync.Mutex
	// removed has the clusters that were removed within registrationTime, and when.
	removed map[string]time.Time
}

// errNotRegistered is why an agent is refused whose cluster has no Secret.
var errNotRegistered = errors.New("the cluster is not registered")

// accept implements tunnel.Config.Accept.
func (a *agentAcceptance) accept(name string, certificate *x509.Certificate) error {
	if known, ok := a.clusters.Get(name); ok {
		return registration.CheckAgentCertificate(certificate, known.AgentCertificatesSince)
	}
	if !a.clusters.HasSynced() {
		return nil // it is checked again for each cluster that is read
	}
	issued := pki.IssuedAt(certificate)
	a.mu.Lock()
	removed, ok := a.removed[name]
	a.mu.Unlock()
	if ok && !issued.After(removed) { // a registration that follows writes its Secret first
		return fmt.Errorf("%w any more", errNotRegistered)
	}
	if a.now().Sub(issued) > registrationTime {
		return errNotRegistered
	}
	return nil
}

// changed notes that a cluster was removed. It is a subscriber of the store.
func (a *agentAcceptance) changed(name string, c *cluster.Cluster) {
	if c != nil {
		return
	}
	now := a.now()
	a.mu.Lock()
	defer a.mu.Unlock()
	for other, at := range a.removed {
		if now.Sub(at) > registrationTime { // such certificates are refused anyway
			delete(a.removed, other)
		}
	}
	a.removed[name] = now
}

var _ registry.AgentCertificates = keeperCertificates{}

// Sign implements registry.AgentCertificates.
func (c keeperCertificates) Sign(name string, usage v1alpha1.AgentCertificateUsage, key any, lifetime time.Duration) (chain, bundle []byte, err error) {
	authority := c.keeper.Authority()
	if authority == nil {
		return nil, nil, registry.ErrNoAuthority
	}
	if usage == v1alpha1.AgentCertificateForInvitation {
		chain, err = authority.SignInvitation(name, key, lifetime)
	} else {
		chain, err = authority.SignAgent(name, key, lifetime)
	}
	return chain, authority.Bundle(), err
}
