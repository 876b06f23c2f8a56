// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ClusterGateway is a managed cluster that can be reached through the gateway: requests to its proxy subresource are sent to
// the cluster's API server. It is read-only: each one is converted from a Secret of the hub, which is where clusters are
// registered, changed and removed. Private keys, tokens and exec configurations are never part of it.
//
// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object
type ClusterGateway struct {
	metav1.TypeMeta `json:",inline"`
	// metadata is that of the Secret, without its namespace.
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// spec is how the cluster is reached.
	// +optional
	Spec ClusterGatewaySpec `json:"spec,omitempty"`
	// status is what is known of the cluster.
	// +optional
	Status ClusterGatewayStatus `json:"status,omitempty"`
}

// ClusterGatewayList is a list of ClusterGateways. Its resource version is that of the Secrets it was converted from.
//
// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object
type ClusterGatewayList struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ListMeta `json:"metadata,omitempty"`

	// items are the ClusterGateways.
	Items []ClusterGateway `json:"items"`
}

// ClusterGatewaySpec is how a cluster is reached.
type ClusterGatewaySpec struct {
	// provider names who runs the cluster. It is informational.
	// +optional
	Provider string `json:"provider,omitempty"`
	// access is the endpoint and the kind of credential.
	Access ClusterAccess `json:"access"`
}

// ClusterAccess is the endpoint of a cluster and the kind of credential that is presented to it.
type ClusterAccess struct {
	// endpoint is where the cluster's API server is.
	// +optional
	Endpoint *ClusterEndpoint `json:"endpoint,omitempty"`
	// credential is what the gateway presents to the cluster's API server, without its secret parts.
	// +optional
	Credential *ClusterAccessCredential `json:"credential,omitempty"`
}

// EndpointType says how the gateway reaches a cluster's API server.
type EndpointType string

const (
	// EndpointTypeConst is an address that the gateway dials itself.
	EndpointTypeConst EndpointType = "Const"
	// EndpointTypeClusterProxy is a Konnectivity tunnel: the cluster's agent dials out to the gateway, and the gateway's
	// connections go through it.
	EndpointTypeClusterProxy EndpointType = "ClusterProxy"
)

// ClusterEndpoint is where a cluster's API server is.
type ClusterEndpoint struct {
	// type is Const (dialled directly) or ClusterProxy (through a Konnectivity tunnel).
	Type EndpointType `json:"type"`
	// const is the address. With a tunnel it is the address that the agent dials.
	// +optional
	Const *ClusterEndpointConst `json:"const,omitempty"`
}

// ClusterEndpointConst is the address of an API server and how it is verified.
type ClusterEndpointConst struct {
	// address is a URL, as in https://10.0.0.1:6443.
	// +optional
	Address string `json:"address,omitempty"`
	// caBundle is the certificate authorities that the API server is verified with, in PEM. Without it, those of the system.
	// +optional
	CABundle []byte `json:"caBundle,omitempty"`
	// insecure is true when the API server's certificate is not verified.
	// +optional
	Insecure *bool `json:"insecure,omitempty"`
	// proxy-url is the proxy that the gateway dials through, without its user and password.
	// +optional
	ProxyURL *string `json:"proxy-url,omitempty"`
}

// CredentialType says which kind of credential the gateway presents to a cluster.
type CredentialType string

const (
	// CredentialTypeX509 is a client certificate and its key.
	CredentialTypeX509 CredentialType = "X509Certificate"
	// CredentialTypeX509Alias is another way to write CredentialTypeX509 in a Secret's label.
	CredentialTypeX509Alias CredentialType = "X509"
	// CredentialTypeServiceAccountToken is a bearer token.
	CredentialTypeServiceAccountToken CredentialType = "ServiceAccountToken"
	// CredentialTypeDynamic is whatever a client-go credential plugin says at the time.
	CredentialTypeDynamic CredentialType = "Dynamic"
)

// ClusterAccessCredential is the public part of the credential that the gateway presents to a cluster.
type ClusterAccessCredential struct {
	// type is X509Certificate, ServiceAccountToken or Dynamic.
	Type CredentialType `json:"type"`
	// x509 is the client certificate, when the type is X509Certificate.
	// +optional
	X509 *X509 `json:"x509,omitempty"`
}

// X509 is a client certificate. Its key is never served.
type X509 struct {
	// certificate is the client certificate and its chain, in PEM.
	// +optional
	Certificate []byte `json:"certificate,omitempty"`
}

// Types of conditions.
const (
	// ConditionReady says whether requests can be served for the cluster.
	ConditionReady = "Ready"
	// ConditionTunnelConnected says whether an agent of the cluster can be talked to. Clusters on the direct route do not have it.
	ConditionTunnelConnected = "TunnelConnected"
	// ConditionCredentialValid says whether the cluster accepts the gateway's credential.
	ConditionCredentialValid = "CredentialValid"
	// ConditionCertificateValid says whether the certificates on the way hold: the API server's, as the Secret wants it
	// verified, and that of the cluster's agents.
	ConditionCertificateValid = "CertificateValid"
)

// Reasons of conditions. An operator's override of the condition Ready has the reason that the operator gave.
const (
	// ReasonInvalidSecret: the Secret cannot be used; the message names each key and what is wrong with it.
	ReasonInvalidSecret = "InvalidSecret"
	// ReasonNotProbed: nobody has looked yet.
	ReasonNotProbed = "NotProbed"
	// ReasonHealthy: the last probe succeeded.
	ReasonHealthy = "Healthy"
	// ReasonUnhealthy: the last probe failed.
	ReasonUnhealthy = "Unhealthy"

	// ReasonNotReached: the probe did not come far enough to tell.
	ReasonNotReached = "NotReached"
	// ReasonNoAgent: no agent of the cluster is connected to the tunnel.
	ReasonNoAgent = "NoAgent"
	// ReasonTunnelFailed: the tunnel itself does not work.
	ReasonTunnelFailed = "TunnelFailed"
	// ReasonAgentFailed: an agent is connected, and did not do what it was asked to.
	ReasonAgentFailed = "AgentFailed"
	// ReasonConnected: an agent is connected.
	ReasonConnected = "Connected"
	// ReasonAPIServerUnreachable: nothing answers at the endpoint.
	ReasonAPIServerUnreachable = "APIServerUnreachable"
	// ReasonAPIServerTimeout: the API server did not answer in time.
	ReasonAPIServerTimeout = "APIServerTimeout"
	// ReasonAPIServerNotReady: the API server answered that it is not ready, or broke off.
	ReasonAPIServerNotReady = "APIServerNotReady"
	// ReasonTLSFailed: TLS with the API server failed for another reason than the ones below.
	ReasonTLSFailed = "TLSFailed"
	// ReasonUnknownAuthority: the API server's certificate is not signed by a CA in the Secret.
	ReasonUnknownAuthority = "UnknownAuthority"
	// ReasonWrongName: the API server's certificate is for another name.
	ReasonWrongName = "WrongName"
	// ReasonExpired: the credential or certificate has ended.
	ReasonExpired = "Expired"
	// ReasonExpiresSoon: it still holds, has not been renewed, and ends soon; the condition is still True.
	ReasonExpiresSoon = "ExpiresSoon"
	// ReasonVerified: the certificate is as the Secret wants it.
	ReasonVerified = "Verified"
	// ReasonNotVerified: the Secret has the verification switched off.
	ReasonNotVerified = "NotVerified"
	// ReasonCredentialRejected: the API server answered 401.
	ReasonCredentialRejected = "CredentialRejected"
	// ReasonCredentialPluginFailed: the program that is to give the credential failed.
	ReasonCredentialPluginFailed = "CredentialPluginFailed"
	// ReasonAccepted: the API server accepts the credential.
	ReasonAccepted = "Accepted"
	// ReasonRenewalFailed: it still holds, and could not be renewed; the message says why.
	ReasonRenewalFailed = "RenewalFailed"
)

// ClusterGatewayStatus is what is known of a cluster.
type ClusterGatewayStatus struct {
	// healthy is whether the last probe succeeded, or what an operator set. It is false as well while nobody has looked yet, which
	// healthyReason NotProbed and the condition Ready, Unknown, tell.
	// +optional
	Healthy bool `json:"healthy"`
	// healthyReason is one word that says why.
	// +optional
	HealthyReason string `json:"healthyReason,omitempty"`
	// conditions holds Ready: False with the reason InvalidSecret when the Secret cannot be used, otherwise the last probe's
	// outcome, and Unknown when there was none; and what the last probe found out about why: TunnelConnected, CredentialValid
	// and CertificateValid.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// version is the version of the cluster's API server.
	// +optional
	Version string `json:"version,omitempty"`
	// route is how requests reach the cluster: direct or tunnel.
	// +optional
	Route string `json:"route,omitempty"`
	// lastProbeTime is when healthy was found out.
	// +optional
	LastProbeTime *metav1.Time `json:"lastProbeTime,omitempty"`
	// latency is how long that probe took.
	// +optional
	Latency *metav1.Duration `json:"latency,omitempty"`
	// credentialExpirationTime is when the credential stops being valid, when it says so.
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
