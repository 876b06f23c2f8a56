// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"

	"k8s.io/klog/v2"

	"github.com/oam-dev/cluster-gateway/pkg/pki"
)

// tunnelServiceName is the Service of the tunnel in manifests/gateway.
const tunnelServiceName = "cluster-gateway-tunnel"

// tunnelCertificates are the certificates of the embedded tunnel server.
type tunnelCertificates interface {
	// tlsConfig is a serving configuration that always uses the current certificates.
	tlsConfig() *tls.Config
	// serving and ca return the current certificates. They are nil until these have been read.
	serving() *x509.Certificate
	ca() *x509.Certificate
	// agentsCA is the CA of agents' certificates. It is nil if that is not another one than ca.
	agentsCA() *x509.Certificate
	// onTrustChange subscribes f to changes of the CAs that verify agents. It must be called before
	// run.
	onTrustChange(f func(x509.VerifyOptions))
	// run follows changes of the certificates until ctx ends.
	run(ctx context.Context) error
}

// keeperCertificates are created and renewed by the gateway, in Secrets.
type keeperCertificates struct{ keeper *pki.Keeper }

var _ tunnelCertificates = keeperCertificates{}

func newKeeperCertificates(c *EmbeddedTunnelConfig, hub HubConfig) keeperCertificates {
	k := pki.NewKeeper(pki.KeeperConfig{
		Client: hub.Client, Namespace: hub.SecretNamespace, CALifetime: c.CALifetime, ServingLifetime: c.ServingLifetime, MinVersion: c.MinTLSVersion,
		AgentsCASecret: pki.AgentsCASecret,
		// Agents in the hub itself use the Service.
		Hosts:  append([]string{tunnelServiceName + "." + hub.SecretNamespace + ".svc"}, c.Hosts...),
		Logger: klog.Background().WithName("pki"),
	})
	k.OnPublish(pki.PublishTunnel(hub.Client, hub.SecretNamespace, c.AdvertiseAddress))
	return keeperCertificates{k}
}

// tlsConfig implements tunnelCertificates.
func (c keeperCertificates) tlsConfig() *tls.Config { return c.keeper.TLS() }

// serving implements tunnelCertificates.
func (c keeperCertificates) serving() *x509.Certificate { return c.keeper.Serving() }

// ca implements tunnelCertificates.
func (c keeperCertificates) ca() *x509.Certificate { return currentCA(c.keeper) }

// agentsCA implements tunnelCertificates.
func (c keeperCertificates) agentsCA() *x509.Certificate {
	if a := c.keeper.Authority(); a != nil {
		return a.Agents()
	}
	return nil
}

// onTrustChange implements tunnelCertificates.
func (c keeperCertificates) onTrustChange(f func(x509.VerifyOptions)) {
	c.keeper.OnTrustChange(func(pool *x509.CertPool) { f(x509.VerifyOptions{Roots: pool}) })
}

// run implements tunnelCertificates.
func (c keeperCertificates) run(ctx context.Context) error { return c.keeper.Follow(ctx) }

// currentCA returns the CA of a Keeper. It is nil until the Keeper has read it.
func currentCA(k *pki.Keeper) *x509.Certificate {
	if a := k.Authority(); a != nil {
		return a.Certificate()
	}
	return nil
}
