// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// Route is the way that requests take to a cluster. The zero value is no route at all: the Secret's label is not understood,
// and such a cluster must not be dialled.
type Route string

const (
	// RouteDirect: the gateway dials the endpoint.
	RouteDirect Route = "direct"
	// RouteTunnel: the cluster's Konnectivity agent dials the endpoint.
	RouteTunnel Route = "tunnel"
)

// TunnelMode is how the gateway serves tunnels. The zero value means TunnelEmbedded.
type TunnelMode string

const (
	// TunnelEmbedded: agents connect to the gateway.
	TunnelEmbedded TunnelMode = "embedded"
	// TunnelExternal: agents connect to a stock konnectivity-server.
	TunnelExternal TunnelMode = "external"
	// TunnelOff: there are no tunnels; a cluster that wants one is invalid.
	TunnelOff TunnelMode = "off"
)

// Cluster is one managed cluster. It must not be changed once parsed, and can then be used concurrently.
type Cluster struct {
	// Name is the Secret's name.
	Name string
	// Namespace is the Secret's namespace.
	Namespace string
	// UID is the Secret's, so that a cluster that is deleted and registered anew is another cluster.
	UID types.UID
	// ResourceVersion is the Secret's.
	ResourceVersion string

	// Route is empty when the Secret's endpoint type is not understood.
	Route Route
	// Endpoint is the managed API server: the scheme is https, the host always has a port, the path has no trailing slash.
	// It may be nil when Err is not.
	Endpoint *url.URL
	// ServerName is the name that the API server's certificate is verified for. It is empty only when the endpoint is nil.
	ServerName string
	// CAData is what the API server's certificate is verified with: CERTIFICATE blocks in PEM and nothing else. Empty means the
	// roots of the system.
	CAData []byte
	// Insecure is whether the API server's certificate goes unverified.
	Insecure bool
	// ProxyURL is the proxy to dial a direct route through, with its user and password. Nil means none.
	ProxyURL *url.URL
	// Credential is what the gateway presents to the API server.
	Credential Credential
	// Health is what the Secret's annotations say of the cluster's health.
	Health Health
	// ManagedBy is the Secret's label app.kubernetes.io/managed-by.
	ManagedBy string

	err         error
	faults      []*InvalidSecretError
	fingerprint Fingerprint
	roots       *x509.CertPool // nil: those of the system
}

// Fingerprint stands for everything that a transport to a cluster depends on, and nothing else: two Clusters with the same
// fingerprint can share one, two with different fingerprints must not.
type Fingerprint [32]byte

// String is short enough for a log line. It does not reveal what was hashed.
func (f Fingerprint) String() string { return fmt.Sprintf("%x", f[:6]) }

// Err is nil when the cluster can be used. Otherwise it joins one *InvalidSecretError for every fault of the Secret.
func (c *Cluster) Err() error { return c.err }

// Faults lists what Err joins. The slice is the caller's.
func (c *Cluster) Faults() []*InvalidSecretError { return slices.Clone(c.faults) }

// Fingerprint returns the cluster's fingerprint. The Secret's name, UID, endpoint, trust and credential go into it, its labels
// and the annotations of its health do not.
func (c *Cluster) Fingerprint() Fingerprint { return c.fingerprint }

// TLSConfig returns a new configuration for connections to the API server. The caller may change it. It fails with Err when
// the cluster is invalid, so that a half-read Secret never yields a weaker configuration than the one it asked for.
func (c *Cluster) TLSConfig() (*tls.Config, error) {
	if c.err != nil {
		return nil, c.err
	}
	config := &tls.Config{
		MinVersion:         tls.VersionTLS12,
		ServerName:         c.ServerName,
		InsecureSkipVerify: c.Insecure, //nolint:gosec // asked for by an annotation on the Secret, the only way to get it
	}
	if c.roots != nil {
		config.RootCAs = c.roots.Clone()
	}
	if s := c.Credential.hidden(); s != nil && s.pair != nil {
		config.Certificates = []tls.Certificate{*s.pair}
	}
	return config, nil
}

// Credential is what the gateway presents to a managed API server. The zero value is none. Only its methods give the secrets
// out.
type Credential struct {
	// Type is the credential's type, with aliases resolved.
	Type v1alpha1.CredentialType

	// reveal hides the secrets behind a function. fmt calls no methods on the unexported fields of a struct that it prints, and
	// with a verb that does not fit, it prints what a pointer there points to. A function is an address to it.
	reveal func() *secrets
}

// secrets is the part of a Credential that is never shown.
type secrets struct {
	token   string
	certPEM []byte
	pair    *tls.Certificate
	exec    *clientcmdapi.ExecConfig
	// begin and expiry are zero when the credential does not say.
	begin, expiry time.Time
}

// hidden is nil when there are no secrets.
func (c Credential) hidden() *secrets {
	if c.reveal == nil {
		return nil
	}
	return c.reveal()
}

// keep makes the secrets the credential's.
func (c *Credential) keep(s *secrets) { c.reveal = func() *secrets { return s } }

// BearerToken is the token of a ServiceAccountToken credential, otherwise empty.
func (c Credential) BearerToken() string {
	s := c.hidden()
	if s == nil {
		return ""
	}
	return s.token
}

// CertificatePEM is the certificate and chain of an X509Certificate credential: CERTIFICATE blocks and nothing else. Otherwise
// it is nil. The slice is the caller's.
func (c Credential) CertificatePEM() []byte {
	s := c.hidden()
	if s == nil {
		return nil
	}
	return slices.Clone(s.certPEM)
}

// Exec is the credential plugin of a Dynamic credential, otherwise nil. It is the caller's.
func (c Credential) Exec() *clientcmdapi.ExecConfig {
	s := c.hidden()
	if s == nil || s.exec == nil {
		return nil
	}
	return s.exec.DeepCopy()
}

// Expiry is when the credential stops being valid: the end of the certificate's life, or the token's exp claim, which is read
// but not verified. It is false when the credential does not say.
func (c Credential) Expiry() (time.Time, bool) {
	s := c.hidden()
	if s == nil || s.expiry.IsZero() {
		return time.Time{}, false
	}
	return s.expiry, true
}

// Begin is when the credential became valid: the beginning of the certificate's life, or the token's iat claim, which is read but not
// verified. It is false when the credential does not say.
func (c Credential) Begin() (time.Time, bool) {
	s := c.hidden()
	if s == nil || s.begin.IsZero() {
		return time.Time{}, false
	}
	return s.begin, true
}

// InvalidSecretError is one fault of a cluster's Secret.
type InvalidSecretError struct {
	// Secret is the Secret's namespace and name.
	Secret types.NamespacedName
	// Key is the data key, label or annotation at fault.
	Key string
	// Problem says what is wrong with it, and what to do where that is not plain.
	Problem string
}

// Error names the Secret, the key and the problem.
func (e *InvalidSecretError) Error() string {
	return fmt.Sprintf("secret %s: %s: %s", e.Secret, e.Key, e.Problem)
}

// Message is all of the error's faults in one line, without the Secret's name. It is empty without an error.
func (c *Cluster) Message() string {
	var b []byte
	for i, f := range c.faults {
		if i > 0 {
			b = append(b, "; "...)
		}
		b = append(b, f.Key...)
		b = append(b, ": "...)
		b = append(b, f.Problem...)
	}
	return string(b)
}

// joinFaults is nil without faults: a typed nil in an error would not be.
func joinFaults(faults []*InvalidSecretError) error {
	errs := make([]error, 0, len(faults))
	for _, f := range faults {
		errs = append(errs, f)
	}
	return errors.Join(errs...)
}

// public is what formatting and marshalling a Cluster shows.
type public struct {
	Name            string                  `json:"name"`
	ResourceVersion string                  `json:"resourceVersion,omitempty"`
	Route           Route                   `json:"route,omitempty"`
	Endpoint        string                  `json:"endpoint,omitempty"`
	ServerName      string                  `json:"serverName,omitempty"`
	Insecure        bool                    `json:"insecure,omitempty"`
	ProxyURL        string                  `json:"proxyURL,omitempty"`
	Credential      v1alpha1.CredentialType `json:"credential,omitempty"`
	Fingerprint     string                  `json:"fingerprint,omitempty"`
	Invalid         string                  `json:"invalid,omitempty"`
}

func (c Cluster) public() public {
	p := public{
		Name:            c.Name,
		ResourceVersion: c.ResourceVersion,
		Route:           c.Route,
		ServerName:      c.ServerName,
		Insecure:        c.Insecure,
		ProxyURL:        redactURL(c.ProxyURL),
		Credential:      c.Credential.Type,
		Fingerprint:     c.fingerprint.String(),
		Invalid:         c.Message(),
	}
	if c.Endpoint != nil {
		p.Endpoint = c.Endpoint.String()
	}
	return p
}

// The methods below have value receivers so that a copy of a Cluster is as safe to print as a pointer to it.

// String shows the public parts.
func (c Cluster) String() string {
	text, err := json.Marshal(c.public())
	if err != nil { // a struct of strings always marshals
		return "Cluster(" + c.Name + ")"
	}
	return "Cluster" + string(text)
}

// GoString shows the public parts.
func (c Cluster) GoString() string { return c.String() }

// Format shows the public parts under every verb.
func (c Cluster) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(c.String())) }

// MarshalJSON shows the public parts.
func (c Cluster) MarshalJSON() ([]byte, error) {
	return json.Marshal(c.public())
}

// MarshalLog shows the public parts to klog.
func (c Cluster) MarshalLog() any {
	return c.public()
}

// String shows the type.
func (c Credential) String() string { return "Credential(" + string(c.Type) + ")" }

// GoString shows the type.
func (c Credential) GoString() string { return c.String() }

// Format shows the type under every verb.
func (c Credential) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(c.String())) }

// MarshalJSON shows the type.
func (c Credential) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]v1alpha1.CredentialType{"type": c.Type})
}

// MarshalLog shows the type to klog.
func (c Credential) MarshalLog() any { return c.String() }

// redactURL keeps that there is a user and hides who.
func redactURL(u *url.URL) string {
	if u == nil {
		return ""
	}
	shown := *u
	if shown.User != nil {
		shown.User = url.User("REDACTED")
	}
	return shown.String()
}
