// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registration

import (
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// FieldManager applies the objects of a registration, whether agent-bootstrap or the gateway does
// it.
const FieldManager = v1alpha1.ManagedByAgentBootstrap

// Names in a managed cluster.
const (
	// AgentNamespace holds everything of a registration that has a namespace.
	AgentNamespace = v1alpha1.AgentNamespace
	// AgentName is the name of the agent's Deployment, ConfigMap and Secret.
	AgentName = "konnectivity-agent"
	// GatewayAccount is the ServiceAccount that the gateway acts as for its callers. It has the
	// rights of --access and no others.
	GatewayAccount = "cluster-gateway"
	// MaintenanceAccount is the ServiceAccount with which the gateway renews credentials. No
	// request of a caller is sent as this account.
	MaintenanceAccount = "cluster-gateway-maintenance"
	// AccessPrefix begins the names of the ClusterRoles and ClusterRoleBindings of a registration.
	AccessPrefix = "cluster-gateway-agent:"
	// AgentPriorityClass is the PriorityClass of the agent's Pods.
	AgentPriorityClass = "cluster-gateway-agent"
	// EnrollName is the name of the objects that enroll a cluster. The Job's name ends with the
	// beginning of the invitation's fingerprint.
	EnrollName = "konnectivity-agent-enrol"
	// EnrollBinding is the ClusterRoleBinding that owns all objects of an enrollment.
	EnrollBinding = AccessPrefix + "enrol"
	// RootCAConfigMap holds the CA of the cluster, in every namespace.
	RootCAConfigMap = "kube-root-ca.crt"
	// agentDir is where the agent's Pods mount their certificate.
	agentDir = "/var/run/konnectivity-agent"
)

// Names by which a managed cluster knows the accounts of the gateway.
const (
	userPrefix      = "system:serviceaccount:" + AgentNamespace + ":"
	GatewayUser     = userPrefix + GatewayAccount
	MaintenanceUser = userPrefix + MaintenanceAccount
)

// DefaultTunnelEndpoint is the API server of the cluster, as an agent in a Pod sees it.
const DefaultTunnelEndpoint = "https://kubernetes.default.svc:443"

// invitationPrefix begins the names of the Secrets that hold records of invitations. They are in
// the same namespace as the Secrets of clusters, so that no cluster may have such a name.
const invitationPrefix = "invitation."

// ValidateName returns an error if name cannot be the name of a cluster that is registered.
func ValidateName(name string) error {
	if faults := v1alpha1.ValidateClusterName(name); len(faults) > 0 {
		return fmt.Errorf("invalid cluster name %q: %s", name, faults[0])
	}
	if strings.HasPrefix(name, invitationPrefix) {
		return fmt.Errorf("invalid cluster name %q: names that begin with %q are reserved for the records of invitations", name, invitationPrefix)
	}
	return nil
}

// ValidateInvitationName returns an error if no invitation can be made for a cluster of this name.
func ValidateInvitationName(name string) error {
	if err := ValidateName(name); err != nil {
		return err
	}
	if len(name) > validation.LabelValueMaxLength {
		return fmt.Errorf("invalid cluster name %q: an invitation is possible only for a name of at most %d characters, and this one has %d",
			name, validation.LabelValueMaxLength, len(name))
	}
	return nil
}
