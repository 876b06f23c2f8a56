// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"crypto/tls"
	"slices"
	"time"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/execplugin"
)

// Credential is the credential that the gateway presents to a managed API server. The zero value
// has no secrets. Only its methods return the secrets.
type Credential struct {
	// Type is the type of the credential. An alias is replaced by the type that it stands for.
	Type v1alpha1.CredentialType

	// reveal hides the secrets behind a function. fmt does not call methods on the unexported
	// fields of a struct. With a verb that does not fit, it prints the value that a pointer in such
	// a field points to. Of a function, it prints only the address.
	reveal func() *secrets
}

// secrets is the part of a Credential that is never printed.
type secrets struct {
	token   string
	certPEM []byte
	pair    *tls.Certificate
	plugin  *execplugin.Command
	// begin and expiry are zero if they are not known.
	begin, expiry time.Time
}

// secrets returns nil if there are no secrets.
func (c Credential) secrets() *secrets {
	if c.reveal == nil {
		return nil
	}
	return c.reveal()
}

// setSecrets sets the secrets of the credential.
func (c *Credential) setSecrets(s *secrets) { c.reveal = func() *secrets { return s } }

// BearerToken returns the token of a ServiceAccountToken credential. For other types, it is empty.
func (c Credential) BearerToken() string {
	s := c.secrets()
	if s == nil {
		return ""
	}
	return s.token
}

// CertificatePEM returns the certificate and the chain of an X509Certificate credential in a new
// slice: CERTIFICATE blocks and nothing else. For other types, it is nil.
func (c Credential) CertificatePEM() []byte {
	s := c.secrets()
	if s == nil {
		return nil
	}
	return slices.Clone(s.certPEM)
}

// Plugin returns the command that provides a Dynamic credential. For other types, it is nil.
func (c Credential) Plugin() *execplugin.Command {
	s := c.secrets()
	if s == nil {
		return nil
	}
	return s.plugin
}

// Expiry returns when the certificate or the token expires. The exp claim of a token is read, but
// the token is not verified. It reports false if that is not known.
func (c Credential) Expiry() (time.Time, bool) {
	s := c.secrets()
	if s == nil || s.expiry.IsZero() {
		return time.Time{}, false
	}
	return s.expiry, true
}

// Begin returns when the certificate became valid or when the token was issued. The iat claim of a
// token is read, but the token is not verified. It reports false if that is not known.
func (c Credential) Begin() (time.Time, bool) {
	s := c.secrets()
	if s == nil || s.begin.IsZero() {
		return time.Time{}, false
	}
	return s.begin, true
}
