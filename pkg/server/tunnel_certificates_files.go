// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"sync"

	"k8s.io/apiserver/pkg/server/dynamiccertificates"
)

// fileCertificates come from files, and are reloaded when these change.
type fileCertificates struct {
	pair   *dynamiccertificates.DynamicCertKeyPairContent
	bundle *dynamiccertificates.DynamicFileCAContent
	reload *dynamiccertificates.DynamicServingCertificateController
	config *tls.Config
}

var _ tunnelCertificates = (*fileCertificates)(nil)

// readCertificates reads the files.
func (o *TunnelOptions) readCertificates() (*fileCertificates, error) {
	c := &fileCertificates{}
	var err error
	if c.pair, err = dynamiccertificates.NewDynamicServingContentFromFiles("tunnel-serving", o.CertFile, o.PrivateKeyFile); err != nil {
		return nil, fmt.Errorf("invalid --tunnel-cert-file %q or --tunnel-private-key-file %q: %w", o.CertFile, o.PrivateKeyFile, err)
	}
	if c.bundle, err = dynamiccertificates.NewDynamicCAContentFromFile("tunnel-client-ca", o.ClientCAFile); err != nil {
		return nil, invalidError("tunnel-client-ca-file", o.ClientCAFile, err)
	}
	base := &tls.Config{MinVersion: o.minVersion(), NextProtos: []string{"h2"}, ClientAuth: tls.RequireAndVerifyClientCert}
	c.reload = dynamiccertificates.NewDynamicServingCertificateController(base, c.bundle, c.pair, nil, nil)
	if err := c.reload.RunOnce(); err != nil {
		return nil, fmt.Errorf("loading the certificates of the tunnel server: %w", err)
	}
	c.config = base.Clone()
	c.config.GetConfigForClient = c.reload.GetConfigForClient
	c.bundle.AddListener(c.reload)
	c.pair.AddListener(c.reload)
	return c, nil
}

// tlsConfig implements tunnelCertificates.
func (c *fileCertificates) tlsConfig() *tls.Config { return c.config }

// serving implements tunnelCertificates.
func (c *fileCertificates) serving() *x509.Certificate {
	pem, _ := c.pair.CurrentCertKeyContent()
	return firstCertificate(pem)
}

// ca implements tunnelCertificates.
func (c *fileCertificates) ca() *x509.Certificate {
	return firstCertificate(c.bundle.CurrentCABundleContent())
}

// agentsCA implements tunnelCertificates.
func (c *fileCertificates) agentsCA() *x509.Certificate { return nil }

// onTrustChange implements tunnelCertificates.
func (c *fileCertificates) onTrustChange(f func(x509.VerifyOptions)) {
	c.bundle.AddListener(trustListener{bundle: c.bundle, onChange: f})
}

// run implements tunnelCertificates.
func (c *fileCertificates) run(ctx context.Context) error {
	var group sync.WaitGroup
	group.Go(func() { c.bundle.Run(ctx, 1) })
	group.Go(func() { c.pair.Run(ctx, 1) })
	group.Go(func() { c.reload.Run(1, ctx.Done()) })
	group.Wait()
	return nil
}

// trustListener calls onChange with the current bundle when the bundle has changed.
type trustListener struct {
	bundle   dynamiccertificates.CAContentProvider
	onChange func(x509.VerifyOptions)
}

var _ dynamiccertificates.Listener = trustListener{}

// Enqueue implements dynamiccertificates.Listener.
func (l trustListener) Enqueue() {
	if opts, ok := l.bundle.VerifyOptions(); ok {
		l.onChange(opts)
	}
}
