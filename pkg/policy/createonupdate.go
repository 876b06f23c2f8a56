// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

// createdByUpdate reports whether a PUT creates an object of this kind if it does not exist: the
// kinds whose strategy returns true from AllowCreateOnUpdate (k8s.io/kubernetes v1.37.2,
// pkg/registry). Objects of custom resources are never created like this.
func createdByUpdate(group, resource string) bool {
	switch group {
	case "":
		return resource == "endpoints" || resource == "events" || resource == "limitranges" || resource == "services"
	case "coordination.k8s.io":
		return resource == "leases" || resource == "leasecandidates"
	case "events.k8s.io":
		return resource == "events"
	case "node.k8s.io":
		return resource == "runtimeclasses"
	case "rbac.authorization.k8s.io":
		return true
	default:
		return false
	}
}
