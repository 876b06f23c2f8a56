// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"crypto/tls"
	"errors"
)

// servingConfig returns a copy of cfg for serving. It makes sure that this configuration, and each
// one that it returns for a client, verifies client certificates: the identity of agents depends on
// that.
func servingConfig(cfg *tls.Config) (*tls.Config, error) {
	if cfg == nil || cfg.ClientAuth != tls.RequireAndVerifyClientCert {
		return nil, errors.New("the tunnel server must require and verify client certificates")
	}
	cfg = cfg.Clone()
	// A resumed session would accept an agent by the CA of the first handshake. Agents connect rarely,
	// so nothing is lost without resumption.
	cfg.SessionTicketsDisabled = true
	forClient := cfg.GetConfigForClient
	if forClient == nil {
		// Without ClientCAs, crypto/tls would use the system's roots: any public CA could then issue
		// certificates for agents.
		if cfg.ClientCAs == nil {
			return nil, errors.New("the tunnel server needs the CA of agents' certificates")
		}
		return cfg, nil
	}
	cfg.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		c, err := forClient(hello)
		switch {
		case err != nil:
			return nil, err
		case c == nil:
			c = cfg
		case c.SessionTicketsDisabled:
		default:
			c = c.Clone()
			c.SessionTicketsDisabled = true
		}
		if c.ClientAuth != tls.RequireAndVerifyClientCert || c.ClientCAs == nil {
			return nil, errors.New("the tunnel server's reloaded configuration does not verify client certificates")
		}
		return c, nil
	}
	return cfg, nil
}
