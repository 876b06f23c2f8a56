// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/url"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/identity"
)

// Route is how requests reach a cluster. The zero value means that the value of the Secret's label
// is not known. Such a cluster must not be dialed.
type Route string

const (
	// RouteDirect means that the gateway dials the endpoint.
	RouteDirect Route = "direct"
	// RouteTunnel means that the cluster's Konnectivity agent dials the endpoint.
	RouteTunnel Route = "tunnel"
)

// TunnelMode is the mode in which the gateway serves tunnels. The zero value means TunnelEmbedded.
type TunnelMode string

const (
	// TunnelEmbedded means that agents connect to the gateway.
	TunnelEmbedded TunnelMode = "embedded"
	// TunnelExternal means that agents connect to a stock konnectivity-server.
	TunnelExternal TunnelMode = "external"
	// TunnelOff means that there are no tunnels. A cluster that needs one is invalid.
	TunnelOff TunnelMode = "off"
)

// Cluster is one managed cluster. It must not be changed after Parse, and is then safe for
// concurrent use.
type Cluster struct {
	// Name is the name of the Secret.
	Name string
	// Namespace is the namespace of the Secret.
	Namespace string
	// UID is the UID of the Secret. A cluster that is deleted and registered again is another
	// cluster.
	UID types.UID
	// ResourceVersion is the resource version of the Secret.
	ResourceVersion string

	// Route is empty if the endpoint type of the Secret is not known.
	Route Route
	// Endpoint is the URL of the managed API server. The scheme is https, the host has a port, and
	// the path has no trailing slash. It may be nil if Err is not nil.
	Endpoint *url.URL
	// ServerName is the name that the API server's certificate must be valid for. It is empty only
	// if the endpoint is nil.
	ServerName string
	// CAData contains the CAs that verify the API server's certificate: CERTIFICATE blocks in PEM
	// and nothing else. If it is empty, the CAs of the operating system verify it.
	CAData []byte
	// Insecure is true if the API server's certificate is not verified.
	Insecure bool
	// ProxyURL is the proxy of a direct route, with user and password. It is nil if there is none.
	ProxyURL *url.URL
	// Credential is the credential that the gateway presents to the API server for its callers. See
	// also Maintenance.
	Credential Credential
	// Health is the state of the cluster that the annotations of the Secret contain.
	Health Health
	// Labels are the labels of the Secret. They must not be changed.
	Labels map[string]string
	// ManagedBy is the value of the label app.kubernetes.io/managed-by of the Secret.
	ManagedBy string
	// Access is what callers may do in the cluster, according to the registration: the value of
	// --access. It is empty if agent-bootstrap did not register the cluster.
	Access string
	// Identity is who the cluster sees when the gateway passes on the request of a caller. It
	// refuses every caller if the Secret does not say clearly.
	Identity identity.Policy
	// AgentCertificatesSince is the time since which the certificates of the cluster's agents are
	// accepted. Earlier ones are revoked. It is zero if all are accepted.
	AgentCertificatesSince time.Time
	// FollowsCA is true if the gateway replaces CAData when the cluster's own CA changes.
	FollowsCA bool

	// Rotation is what agent-bootstrap rotate asks for.
	Rotation RotationRequest

	maintenance Credential
	err         error
	faults      []*InvalidSecretError
	warnings    []string
	fingerprint Fingerprint
	roots       *x509.CertPool // nil means the CAs of the operating system
}

// Fingerprint is a hash of everything that a transport to a cluster depends on, and of what may be
// sent over it, and of nothing else. Two Clusters with the same fingerprint can share a transport.
// Two Clusters with different fingerprints must not.
type Fingerprint [32]byte

// String returns the first bytes of the hash, for log lines.
func (f Fingerprint) String() string { return fmt.Sprintf("%x", f[:6]) }

// Err returns nil if the Secret is valid. Otherwise, it joins one *InvalidSecretError for each
// fault of the Secret.
func (c *Cluster) Err() error { return c.err }

// Faults returns the errors that Err joins, in a new slice.
func (c *Cluster) Faults() []*InvalidSecretError { return slices.Clone(c.faults) }

// Fingerprint returns the fingerprint of the cluster. It depends on the Secret's name, UID,
// endpoint, CAs, credential and identity. It does not depend on other labels and on the annotations
// that contain the state.
func (c *Cluster) Fingerprint() Fingerprint { return c.fingerprint }

// Maintenance returns the credential with which the gateway renews the credentials of the cluster.
// Requests of callers must never be sent with it. It has no secrets if the cluster was registered
// without one: see [Cluster.SharesCredential].
func (c *Cluster) Maintenance() Credential { return c.maintenance }

// IsRegistered reports whether agent-bootstrap or an invitation registered the cluster, so that the
// gateway renews its credentials.
func (c *Cluster) IsRegistered() bool {
	return c.ManagedBy == v1alpha1.ManagedByAgentBootstrap && c.Credential.Type == v1alpha1.CredentialTypeServiceAccountToken
}

// SharesCredential reports whether the gateway renews the credentials of the cluster with the one
// that it presents for callers. Versions before v0.1.0 registered all clusters like this.
func (c *Cluster) SharesCredential() bool { return c.IsRegistered() && c.maintenance.secrets() == nil }

// AllowsAgentNamespace reports whether callers may do with the agent's namespace whatever the
// cluster allows them. That is not so if the cluster was registered with less access than that of
// an administrator: what the gateway keeps there is more powerful than the callers are. It is not
// so either if the cluster sees its callers, since they have different rights.
func (c *Cluster) AllowsAgentNamespace() bool {
	if !c.IsRegistered() {
		return true
	}
	return c.Identity.Mode == identity.ModeCredential && (c.Access == v1alpha1.AccessAdmin || c.Access == v1alpha1.ClusterRoleAdmin)
}

// TLSConfig returns a new configuration for connections to the API server. The caller may change
// it. It returns Err if the Secret is invalid, so that a Secret that was only partly read never
// results in a weaker configuration.
func (c *Cluster) TLSConfig() (*tls.Config, error) {
	if c.err != nil {
		return nil, c.err
	}
	config := &tls.Config{
		MinVersion:         tls.VersionTLS12,
		ServerName:         c.ServerName,
		InsecureSkipVerify: c.Insecure, //nolint:gosec // only an annotation of the Secret can set it
	}
	if c.roots != nil {
		config.RootCAs = c.roots.Clone()
	}
	if s := c.Credential.secrets(); s != nil && s.pair != nil {
		config.Certificates = []tls.Certificate{*s.pair}
	}
	return config, nil
}
