// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

const (
	// LabelManagedBy names the tool that manages an object.
	LabelManagedBy = "app.kubernetes.io/managed-by"
	// ManagedByAgentBootstrap is the value of LabelManagedBy on everything that a registration
	// applies. The gateway renews the credentials of a cluster only if its Secret has it.
	ManagedByAgentBootstrap = "agent-bootstrap"
	// ManagedByClusterAPI is the value of LabelManagedBy on the Secret of a cluster that the gateway
	// has registered with a kubeconfig of Cluster API.
	ManagedByClusterAPI = "cluster-api"
)

// AgentNamespace is the namespace in a managed cluster that holds everything of a registration that
// has a namespace.
const AgentNamespace = "cluster-gateway-agent"

// Values of --access that others must know: AccessAdmin stands for the ClusterRole
// ClusterRoleAdmin, which may do everything.
const (
	AccessAdmin      = "admin"
	ClusterRoleAdmin = "cluster-admin"
)

// Annotations of a cluster's Secret that a registration writes.
const (
	// AnnotationClusterUID identifies the cluster: the UID of its namespace kube-system.
	AnnotationClusterUID = GroupName + "/cluster-uid"
	// AnnotationAccess is the value of --access.
	AnnotationAccess = GroupName + "/access"
	// AnnotationCASource says that the gateway follows the changes of the cluster's CA. Its value
	// is CASourceCluster if ca.crt was read from the cluster.
	AnnotationCASource = GroupName + "/ca-source"
	CASourceCluster    = "kube-root-ca.crt"
	// AnnotationAgentCertificatesSince is a time, in RFC 3339. Certificates of the cluster's agents
	// that were issued before it are refused, and the streams of agents with such certificates end.
	// If it is missing, certificates of every age are accepted.
	AnnotationAgentCertificatesSince = GroupName + "/agent-certificates-since"
	// AnnotationClusterAPISecret is the namespace, a slash, and the name of the Secret of Cluster API
	// with the kubeconfig that the cluster is registered with.
	AnnotationClusterAPISecret = GroupName + "/cluster-api-secret"
	// AnnotationRotationRequest asks the gateway to replace credentials of the cluster now. Its
	// value is that of cluster.RotationRequest in JSON.
	AnnotationRotationRequest = GroupName + "/rotation-request"
	// AnnotationRotatedTokens and AnnotationRotatedCertificate are the IDs of the last requests
	// that the gateway carried out.
	AnnotationRotatedTokens      = GroupName + "/rotated-tokens"
	AnnotationRotatedCertificate = GroupName + "/rotated-certificate"
	// AnnotationRotationFailure is the ID of a request, a space, and why the first attempt failed.
	// The gateway tries again.
	AnnotationRotationFailure = GroupName + "/rotation-failure"
)

// Annotations of the agent's namespace in a managed cluster.
const (
	// AnnotationClusterName is the name under which the cluster is registered.
	AnnotationClusterName = GroupName + "/cluster-name"
	// AnnotationHubUID identifies the hub: the UID of its namespace kube-system.
	AnnotationHubUID = GroupName + "/hub-uid"
)

// Annotations of the agent's Pods. The Pods are replaced when one of them changes.
const (
	// AnnotationAgentCertificate is a hash of the agent's certificate and of the CAs that it
	// trusts.
	AnnotationAgentCertificate = GroupName + "/agent-certificate"
	// AnnotationAgentAddress is a hash of the address that the agent dials.
	AnnotationAgentAddress = GroupName + "/agent-address"
)

// Metadata of a Secret that is the record of an invitation.
const (
	// LabelInvitation marks the record. Its value is the name of the cluster, so an invitation is
	// possible only for a name that fits a label.
	LabelInvitation = GroupName + "/invitation"
	// AnnotationInvitationState says how far the invitation has been used.
	AnnotationInvitationState = GroupName + "/invitation-state"
	// AnnotationInvitationUsedAt is when a cluster claimed the invitation, in RFC 3339.
	AnnotationInvitationUsedAt = GroupName + "/invitation-used-at"
	// AnnotationInvitationMessage is why the last attempt was refused.
	AnnotationInvitationMessage = GroupName + "/invitation-message"
)
