// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/dialer"
)

// externalTunnel dials clusters through stock konnectivity-servers.
type externalTunnel struct{ servers *dialer.Konnectivity }

var _ tunnelRoute = (*externalTunnel)(nil)

// dialer implements tunnelRoute.
func (t *externalTunnel) dialer(c *cluster.Cluster, _ dialer.Purpose) (dialer.Dialer, error) {
	return t.servers.Dialer(c.Name, c.Endpoint.Host), nil
}

// run implements tunnelRoute.
func (t *externalTunnel) run(ctx context.Context) error {
	<-ctx.Done()
	return t.servers.Close()
}

// close implements tunnelRoute.
func (t *externalTunnel) close() { _ = t.servers.Close() } // nothing has been dialed

// externalConfig reads the files of the external mode. The gateway reads its client certificate
// again for each connection.
func (o *TunnelOptions) externalConfig() (*dialer.KonnectivityConfig, error) {
	config := &dialer.KonnectivityConfig{
		Servers: o.KonnectivityServers, PlainText: insecure.NewCredentials(), ReceiveBuffer: o.ConnectionBuffer,
	}
	if o.KonnectivityCertFile != "" {
		tlsConfig, err := o.konnectivityTLS()
		if err != nil {
			return nil, err
		}
		config.TLS = credentials.NewTLS(tlsConfig)
	}
	return config, nil
}

func (o *TunnelOptions) konnectivityTLS() (*tls.Config, error) {
	roots, err := readCertPool("konnectivity-ca-file", o.KonnectivityCAFile)
	if err != nil {
		return nil, err
	}
	certFile, keyFile := o.KonnectivityCertFile, o.KonnectivityKeyFile
	if _, err := tls.LoadX509KeyPair(certFile, keyFile); err != nil {
		return nil, fmt.Errorf("invalid --konnectivity-cert-file %q or --konnectivity-key-file %q: %w", certFile, keyFile, err)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12, RootCAs: roots,
		// There are few connections and they are long-lived. Reading the files for each connection means
		// that a renewed pair needs no restart.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(certFile, keyFile)
			return &pair, err
		},
	}, nil
}

func readCertPool(flag, path string) (*x509.CertPool, error) {
	pem, err := readFile(flag, path)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, invalid(flag, path, "must contain at least one certificate in PEM")
	}
	return pool, nil
}
