// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// explain turns an error into one that says what to do.
func (c *clusterClient) explain(err error) error {
	var dns *net.DNSError
	var op *net.OpError
	var invalid x509.CertificateInvalidError
	host := c.config.Host
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled):
		return errors.New("interrupted: to continue, run the same command again")
	case apierrors.IsUnauthorized(err):
		return fmt.Errorf("%s at %s does not accept the credential in %s (401): it has expired, or is for another cluster", c.title, host, c.source)
	case apierrors.IsForbidden(err):
		return fmt.Errorf("your account may not do this on %s: %w\nAsk for this right, or use a kubeconfig (%s) that has it", c.title, err, c.source)
	case errors.As(err, &dns):
		return fmt.Errorf("%s: %s points to %s, but no host has that name (%w): check the name, your DNS and your VPN", c.title, c.source, host, err)
	case errors.As(err, &op) && op.Op == "dial", errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s: %s points to %s, where nothing answers (%w): check the address, and that it can be reached from here", c.title, c.source, host, err)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Errorf("%s: by the clock of this machine, the certificate of the server at %s is not valid (%w): correct the clock that is wrong, or renew the certificate", c.title, host, err)
	case strings.Contains(err.Error(), "x509: "): // client-go wraps these in errors without a type
		return fmt.Errorf("%s: the server at %s is not the one that %s expects: %w", c.title, host, c.source, err)
	case strings.Contains(err.Error(), "first record does not look like a TLS handshake"): // tls.RecordHeaderError, wrapped as above
		return fmt.Errorf("%s: %s points to %s, where the server does not use TLS: check the address and the port", c.title, c.source, host)
	default:
		return fmt.Errorf("%s: %w", c.title, err)
	}
}
