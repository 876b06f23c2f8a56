// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import "k8s.io/apimachinery/pkg/util/validation"

// DefaultNamespace is the namespace of the hub that holds the Secrets of clusters and what the
// gateway keeps for itself, unless --secret-namespace names another one.
const DefaultNamespace = "cluster-gateway-system"

// Paths of the resource on an API server.
const (
	// BasePath is the path of all ClusterGateways. It ends with a slash, and is followed by a name.
	BasePath = "/apis/" + GroupName + "/" + Version + "/" + ResourceName + "/"
	// ProxySubresource is the subresource whose path prefixes every path of a managed cluster.
	ProxySubresource = "proxy"
	// HealthSubresource is the subresource that shows and overrides the state of a cluster.
	HealthSubresource = "health"
	// AgentCertificateSubresource is the subresource that issues certificates for the tunnel.
	AgentCertificateSubresource = "agentcertificate"
)

// ProxyPath returns the path prefix under which the API of the cluster is served. It does not end
// with a slash.
func ProxyPath(cluster string) string { return BasePath + cluster + "/" + ProxySubresource }

// Keys in the data of a Secret that describes a cluster. docs/secrets.md says what each one means.
const (
	SecretKeyEndpoint   = "endpoint"
	SecretKeyCA         = "ca.crt"
	SecretKeyCAAlias    = "ca"
	SecretKeyServerName = "tls-server-name"
	SecretKeyCert       = "tls.crt"
	SecretKeyPrivateKey = "tls.key"
	SecretKeyToken      = "token"
	SecretKeyExec       = "exec"
	SecretKeyProxyURL   = "proxy-url"
	// SecretKeyMaintenanceToken holds the token with which the gateway renews the credentials of
	// the cluster. No request of a caller is ever sent with it.
	SecretKeyMaintenanceToken = "maintenance-token"
)

// SecretKeyAgentValues is the key with the values of the cluster's agent (agent-bootstrap register
// --agent-values), in JSON. The gateway does not use it to reach the cluster.
const SecretKeyAgentValues = "agent-values"

// Organizations (O) in the subject of certificates that the tunnel CA issues. The common name (CN)
// is the name of the cluster.
const (
	// AgentOrganization marks the certificate of an agent.
	AgentOrganization = GroupName + ":tunnel-agents"
	// InvitationOrganization marks the certificate in an invitation. Whoever presents it may
	// register one cluster, and is not an agent.
	InvitationOrganization = GroupName + ":tunnel-invitations"
	// PeerOrganization marks the certificate of a replica of the gateway. A CA of its own issues it.
	PeerOrganization = GroupName + ":gateway-peers"
)

// ValidateClusterName returns what is wrong with the name of a cluster, or nothing. The name of a
// cluster is the name of its Secret, so the rules are those of Kubernetes for names of Secrets
// (DNS-1123 subdomain).
func ValidateClusterName(name string) []string { return validation.IsDNS1123Subdomain(name) }
