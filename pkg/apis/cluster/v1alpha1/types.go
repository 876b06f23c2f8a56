// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ClusterGateway is a managed cluster that the gateway can reach. Requests to its proxy subresource
// are sent to the cluster's API server. It is read-only and represents a Secret on the hub: to
// register, change or remove a cluster, create, change or delete its Secret. It never contains
// private keys, tokens or exec configurations.
//
// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object
type ClusterGateway struct {
	metav1.TypeMeta `json:",inline"`
	// metadata is the metadata of the Secret, without the namespace.
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// spec describes how the gateway reaches the cluster.
	// +optional
	Spec ClusterGatewaySpec `json:"spec,omitempty"`
	// status is the observed state of the cluster.
	// +optional
	Status ClusterGatewayStatus `json:"status,omitempty"`
}

// ClusterGatewayList is a list of ClusterGateways. Its resource version is the one of the list of
// Secrets.
//
// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object
type ClusterGatewayList struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ListMeta `json:"metadata,omitempty"`

	// items is the list of ClusterGateways.
	Items []ClusterGateway `json:"items"`
}

// ClusterGatewaySpec describes how the gateway reaches a cluster.
type ClusterGatewaySpec struct {
	// provider names the provider of the cluster. It is informational.
	// +optional
	Provider string `json:"provider,omitempty"`
	// access contains the endpoint of the cluster and the type of the credential.
	Access ClusterAccess `json:"access"`
}

// ClusterAccess contains the endpoint of a cluster and the type of the credential that the gateway
// presents to it.
type ClusterAccess struct {
	// endpoint describes where the cluster's API server is and how the gateway reaches it.
	// +optional
	Endpoint *ClusterEndpoint `json:"endpoint,omitempty"`
	// credential describes the credential that the gateway presents to the cluster's API server,
	// without its secret parts.
	// +optional
	Credential *ClusterAccessCredential `json:"credential,omitempty"`
}

// EndpointType is the route by which the gateway reaches a cluster's API server.
type EndpointType string

const (
	// EndpointTypeConst means that the gateway connects to the API server directly.
	EndpointTypeConst EndpointType = "Const"
	// EndpointTypeClusterProxy means that the gateway connects through a Konnectivity tunnel, which
	// the cluster's agent opens to the gateway.
	EndpointTypeClusterProxy EndpointType = "ClusterProxy"
)

// ClusterEndpoint describes where a cluster's API server is and how the gateway reaches it.
type ClusterEndpoint struct {
	// type is Const (a direct connection) or ClusterProxy (through a Konnectivity tunnel).
	Type EndpointType `json:"type"`
	// const contains the address of the API server. With a tunnel, it is the address that the agent
	// connects to.
	// +optional
	Const *ClusterEndpointConst `json:"const,omitempty"`
}

// ClusterEndpointConst contains the address of an API server and how the gateway verifies it.
type ClusterEndpointConst struct {
	// address is the URL of the API server, for example https://10.0.0.1:6443.
	// +optional
	Address string `json:"address,omitempty"`
	// caBundle contains the CA certificates that verify the API server, in PEM. If it is empty, the
	// gateway uses the CAs of its operating system.
	// +optional
	CABundle []byte `json:"caBundle,omitempty"`
	// insecure is true if the gateway does not verify the API server's certificate.
	// +optional
	Insecure *bool `json:"insecure,omitempty"`
	// proxy-url is the proxy that the gateway connects through, without user name and password.
	// +optional
	ProxyURL *string `json:"proxy-url,omitempty"`
}

// CredentialType is the type of the credential that the gateway presents to a cluster.
type CredentialType string

const (
	// CredentialTypeX509 means a client certificate and its key.
	CredentialTypeX509 CredentialType = "X509Certificate"
	// CredentialTypeX509Alias is another value for CredentialTypeX509 in the label of a Secret.
	CredentialTypeX509Alias CredentialType = "X509"
	// CredentialTypeServiceAccountToken means a bearer token.
	CredentialTypeServiceAccountToken CredentialType = "ServiceAccountToken"
	// CredentialTypeDynamic means that a client-go credential plugin provides the credential.
	CredentialTypeDynamic CredentialType = "Dynamic"
)

// ClusterAccessCredential is the public part of the credential that the gateway presents to a
// cluster.
type ClusterAccessCredential struct {
	// type is X509Certificate, ServiceAccountToken or Dynamic.
	Type CredentialType `json:"type"`
	// x509 contains the client certificate if the type is X509Certificate.
	// +optional
	X509 *X509 `json:"x509,omitempty"`
}

// X509 contains a client certificate, without its key.
type X509 struct {
	// certificate is the client certificate and its chain, in PEM.
	// +optional
	Certificate []byte `json:"certificate,omitempty"`
}

// Types of conditions.
const (
	// ConditionReady reports whether the gateway can serve requests for the cluster.
	ConditionReady = "Ready"
	// ConditionTunnelConnected reports whether an agent of the cluster is connected. Only clusters
	// behind a tunnel have it.
	ConditionTunnelConnected = "TunnelConnected"
	// ConditionCredentialValid reports whether the cluster accepts the gateway's credential.
	ConditionCredentialValid = "CredentialValid"
	// ConditionCertificateValid reports whether the certificates of the API server and of the
	// cluster's agents are valid.
	ConditionCertificateValid = "CertificateValid"
	// ConditionCredentialsSeparate reports whether the gateway renews the credentials of the
	// cluster with a credential that no caller has. Only clusters that agent-bootstrap or an
	// invitation registered have it.
	ConditionCredentialsSeparate = "CredentialsSeparate"
)

// Reasons of conditions. If an operator overrides the condition Ready, its reason is the
// operator's.
const (
	// ReasonInvalidSecret: the Secret is invalid. The message lists what is wrong with which key.
	ReasonInvalidSecret = "InvalidSecret"
	// ReasonUnsupportedProxyConfiguration: the gateway cannot use the rules in
	// AnnotationProxyConfiguration. The message lists what is wrong with them.
	ReasonUnsupportedProxyConfiguration = "UnsupportedProxyConfiguration"
	// ReasonNotProbed: the cluster has not been probed yet.
	ReasonNotProbed = "NotProbed"
	// ReasonHealthy: the last probe succeeded.
	ReasonHealthy = "Healthy"
	// ReasonUnhealthy: the last probe failed.
	ReasonUnhealthy = "Unhealthy"

	// ReasonNotReached: the probe failed before this could be checked.
	ReasonNotReached = "NotReached"
	// ReasonNoAgent: no agent of the cluster is connected to the tunnel.
	ReasonNoAgent = "NoAgent"
	// ReasonTunnelFailed: the gateway could not use the tunnel. The message has the error.
	ReasonTunnelFailed = "TunnelFailed"
	// ReasonAgentFailed: an agent is connected, but failed to connect to the API server.
	ReasonAgentFailed = "AgentFailed"
	// ReasonConnected: an agent is connected.
	ReasonConnected = "Connected"
	// ReasonConnectedExternally: an agent is connected to a konnectivity-server that is not part of
	// the gateway, so upgraded connections have no flow control of their own.
	ReasonConnectedExternally = "ConnectedExternally"
	// ReasonAgentsRefused: an agent is connected, and others are refused because of the limit of
	// agents, or because their certificates are revoked.
	ReasonAgentsRefused = "AgentsRefused"
	// ReasonAgentFailing: an agent works, and connections through another one fail.
	ReasonAgentFailing = "AgentFailing"
	// ReasonAPIServerUnreachable: the endpoint cannot be reached.
	ReasonAPIServerUnreachable = "APIServerUnreachable"
	// ReasonAPIServerTimeout: the API server did not answer in time.
	ReasonAPIServerTimeout = "APIServerTimeout"
	// ReasonAPIServerNotReady: the API server reported that it is not ready, or its response was
	// incomplete.
	ReasonAPIServerNotReady = "APIServerNotReady"
	// ReasonTLSFailed: the TLS handshake with the API server failed for a reason that is not listed
	// below.
	ReasonTLSFailed = "TLSFailed"
	// ReasonUnknownAuthority: the API server's certificate is signed by an unknown CA.
	ReasonUnknownAuthority = "UnknownAuthority"
	// ReasonWrongName: the API server's certificate is for another name.
	ReasonWrongName = "WrongName"
	// ReasonExpired: the credential or certificate has expired.
	ReasonExpired = "Expired"
	// ReasonExpiresSoon: the credential or certificate is valid, but expires soon and was not
	// renewed. The condition is still True.
	ReasonExpiresSoon = "ExpiresSoon"
	// ReasonVerified: the certificate is valid.
	ReasonVerified = "Verified"
	// ReasonNotVerified: the Secret disables the verification.
	ReasonNotVerified = "NotVerified"
	// ReasonCredentialRejected: the API server answered 401.
	ReasonCredentialRejected = "CredentialRejected"
	// ReasonCredentialPluginFailed: the credential plugin failed.
	ReasonCredentialPluginFailed = "CredentialPluginFailed"
	// ReasonAccepted: the API server accepts the credential.
	ReasonAccepted = "Accepted"
	// ReasonRenewalFailed: the credential or certificate is valid, but its renewal failed. The
	// message contains the error.
	ReasonRenewalFailed = "RenewalFailed"

	// ReasonTwoCredentials: the gateway has one credential for callers and one for maintenance.
	ReasonTwoCredentials = "TwoCredentials"
	// ReasonSharedCredential: the gateway has only one credential. An earlier version registered
	// the cluster.
	ReasonSharedCredential = "SharedCredential"
)

// ClusterGatewayStatus is the observed state of a cluster.
type ClusterGatewayStatus struct {
	// healthy is true if the last probe succeeded, unless an operator has set it. It is also false
	// if the cluster has not been probed yet. In this case, healthyReason is NotProbed and the
	// condition Ready is Unknown.
	// +optional
	Healthy bool `json:"healthy"`
	// healthyReason is the reason for the value of healthy, one word in CamelCase.
	// +optional
	HealthyReason string `json:"healthyReason,omitempty"`
	// conditions contains Ready, which is False if the Secret is invalid (reason InvalidSecret or
	// UnsupportedProxyConfiguration), Unknown if the cluster has not been probed yet, and otherwise
	// the outcome of the last probe. TunnelConnected, CredentialValid and CertificateValid contain
	// details of the last probe.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// version is the version of the cluster's API server.
	// +optional
	Version string `json:"version,omitempty"`
	// route is the route of requests to the cluster: direct or tunnel.
	// +optional
	Route string `json:"route,omitempty"`
	// identity is who the cluster sees: credential (the account of the gateway), impersonate (the
	// caller) or rules (rules decide).
	// +optional
	Identity string `json:"identity,omitempty"`
	// lastProbeTime is the time of the last probe that changed the status.
	// +optional
	LastProbeTime *metav1.Time `json:"lastProbeTime,omitempty"`
	// latency is the response time of the API server in that probe.
	// +optional
	Latency *metav1.Duration `json:"latency,omitempty"`
	// credentialExpirationTime is when the credential expires. It is empty if that is not known.
	// +optional
	CredentialExpirationTime *metav1.Time `json:"credentialExpirationTime,omitempty"`
}

// ClusterGatewayProxyOptions are the options of a request to the proxy subresource.
//
// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object
type ClusterGatewayProxyOptions struct {
	metav1.TypeMeta `json:",inline"`

	// path is the path on the cluster's API server.
	// +optional
	Path string `json:"path,omitempty"`
}

// AgentCertificate asks for a certificate with which an agent, or whoever has an invitation,
// connects to the tunnel. POST it to the subresource agentcertificate of a cluster, which need not
// be registered yet. The answer has the certificate. Nothing is stored.
//
// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object
type AgentCertificate struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// spec is the request.
	Spec AgentCertificateSpec `json:"spec"`
	// status is the answer. It is ignored in a request.
	// +optional
	Status AgentCertificateStatus `json:"status,omitempty"`
}

// AgentCertificateUsage is what a certificate is for.
type AgentCertificateUsage string

const (
	// AgentCertificateForAgent is the usage of an agent of the cluster.
	AgentCertificateForAgent AgentCertificateUsage = "Agent"
	// AgentCertificateForInvitation is the usage of an invitation. The certificate is of use only
	// while the record of the invitation is on the hub.
	AgentCertificateForInvitation AgentCertificateUsage = "Invitation"
)

// AgentCertificateSpec is a request for a certificate.
type AgentCertificateSpec struct {
	// request is a certificate signing request (PKCS #10) in PEM. Only its key is used: ECDSA,
	// Ed25519, or RSA with at least 2048 bits.
	Request []byte `json:"request"`
	// usage is Agent or Invitation. Empty means Agent.
	// +optional
	Usage AgentCertificateUsage `json:"usage,omitempty"`
	// expirationSeconds is how long the certificate is valid. Empty means a year, or what is left of
	// the lifetime of the CA if that is less.
	// +optional
	ExpirationSeconds *int64 `json:"expirationSeconds,omitempty"`
}

// AgentCertificateStatus is the answer to a request for a certificate.
type AgentCertificateStatus struct {
	// certificate is the certificate in PEM, followed by those that lead to older CAs.
	// +optional
	Certificate []byte `json:"certificate,omitempty"`
	// caBundle has the CAs that verify the tunnel server, in PEM.
	// +optional
	CABundle []byte `json:"caBundle,omitempty"`
}
