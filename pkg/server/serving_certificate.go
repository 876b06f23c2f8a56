// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"slices"
	"sync"

	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	"k8s.io/klog/v2"

	"github.com/oam-dev/cluster-gateway/pkg/pki"
)

// serviceName is the Service in manifests/gateway. The hub's aggregation layer verifies the gateway
// by its name.
const serviceName = "cluster-gateway"

// servingCertificate is the certificate that the gateway creates for its own endpoint, in the form
// that k8s.io/apiserver reads.
type servingCertificate struct {
	keeper *pki.Keeper

	mu        sync.Mutex
	listeners []dynamiccertificates.Listener
}

var (
	_ dynamiccertificates.CertKeyContentProvider = (*servingCertificate)(nil)
	_ dynamiccertificates.Notifier               = (*servingCertificate)(nil)
)

// newServingCertificate returns a certificate that has not been read or created.
func newServingCertificate(c *ServingCertificateConfig, hub HubConfig) *servingCertificate {
	service := serviceName + "." + hub.SecretNamespace
	s := &servingCertificate{keeper: pki.NewKeeper(pki.KeeperConfig{
		Client: hub.Client, Namespace: hub.SecretNamespace, CASecret: pki.GatewayCASecret, ServingSecret: pki.GatewayServingSecret,
		Hosts:      append([]string{service + ".svc", service + ".svc.cluster.local", service, "localhost", "127.0.0.1", "::1"}, c.Hosts...),
		CALifetime: c.CALifetime, ServingLifetime: c.Lifetime,
		Logger: klog.Background().WithName("pki"),
	})}
	s.keeper.OnServingChange(s.notify)
	return s
}

// Name implements dynamiccertificates.CertKeyContentProvider.
func (s *servingCertificate) Name() string { return "Secret " + pki.GatewayServingSecret }

// CurrentCertKeyContent implements dynamiccertificates.CertKeyContentProvider.
func (s *servingCertificate) CurrentCertKeyContent() (cert, key []byte) { return s.keeper.Pair() }

// AddListener implements dynamiccertificates.Notifier.
func (s *servingCertificate) AddListener(l dynamiccertificates.Listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listeners = append(s.listeners, l)
}

func (s *servingCertificate) notify() {
	s.mu.Lock()
	listeners := slices.Clone(s.listeners)
	s.mu.Unlock()
	for _, l := range listeners {
		l.Enqueue()
	}
}
