// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registration

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
)

// NameHolder is the kind of object that has a name on the hub.
type NameHolder string

// The holders of a name.
const (
	// HolderOtherCluster is a registration of another cluster.
	HolderOtherCluster NameHolder = "OtherCluster"
	// HolderManual is a cluster that was registered without agent-bootstrap.
	HolderManual NameHolder = "Manual"
	// HolderOtherSecret is a Secret that is not a cluster.
	HolderOtherSecret NameHolder = "OtherSecret"
)

// NameTakenError means that another object than the requesting cluster has the name.
type NameTakenError struct {
	Name   string
	Holder NameHolder
	// Secret is the namespace and name of the Secret that holds the name.
	Secret types.NamespacedName
	// HolderUID identifies the cluster that has the name, if Holder is HolderOtherCluster. UID
	// identifies the cluster that wants it; it is empty while that is not known.
	HolderUID, UID types.UID
}

// Error describes who has the name, and what to do.
func (e *NameTakenError) Error() string {
	switch e.Holder {
	case HolderOtherCluster:
		holder := fmt.Sprintf("a cluster is registered under it already (%s)", e.HolderUID)
		if e.UID != "" {
			holder = fmt.Sprintf("it is registered to another cluster (%s, and this is %s)", e.HolderUID, e.UID)
		}
		return fmt.Sprintf("the name %q is taken: %s. Choose another name, or remove that registration first: agent-bootstrap unregister %s",
			e.Name, holder, e.Name)
	case HolderManual:
		return fmt.Sprintf("the name %q is taken: the Secret %s on the hub is a cluster that was registered without agent-bootstrap. Choose another name, or take it over: agent-bootstrap register %s --adopt",
			e.Name, e.Secret, e.Name)
	default:
		return fmt.Sprintf("the name %q is taken: the Secret %s on the hub is not a cluster. Choose another name, or take the Secret over: agent-bootstrap register %s --adopt",
			e.Name, e.Secret, e.Name)
	}
}

// CheckName returns a *NameTakenError unless the cluster with this UID may have the name of the
// Secret. The Secret is the one of that name on the hub, or nil if there is none. An empty UID
// means that the cluster is not known yet: then every Secret holds the name.
func CheckName(secret *corev1.Secret, uid types.UID) error {
	if secret == nil {
		return nil
	}
	err := &NameTakenError{Name: secret.Name, Secret: types.NamespacedName{Namespace: secret.Namespace, Name: secret.Name}, UID: uid}
	holder := types.UID(secret.Annotations[v1alpha1.AnnotationClusterUID])
	switch {
	case holder != "" && holder == uid:
		return nil
	case holder != "":
		err.Holder, err.HolderUID = HolderOtherCluster, holder
	case cluster.IsCluster(secret):
		err.Holder = HolderManual
	default:
		err.Holder = HolderOtherSecret
	}
	return err
}

// RegisteredError means that a cluster is registered already, under another name or with another
// hub.
type RegisteredError struct {
	// Name is the name under which it is registered.
	Name string
	// HubUID identifies the other hub. It is empty if the cluster is registered with this one.
	HubUID types.UID
}

// Error says where the cluster is registered, and what to do.
func (e *RegisteredError) Error() string {
	if e.HubUID == "" {
		return fmt.Sprintf("this cluster is registered already, as %q: use that name, or remove the registration first: agent-bootstrap unregister %s", e.Name, e.Name)
	}
	return fmt.Sprintf("this cluster is registered already, as %q with another hub (%s): remove the registration there first. If that hub no longer exists, or was restored as this one, take the registration over: agent-bootstrap register %s --cluster-kubeconfig FILE --take-over",
		e.Name, e.HubUID, e.Name)
}

// CheckNamespace returns a *RegisteredError if the annotations of the agent's namespace show that
// its cluster is registered under another name or with another hub. namespace may be nil.
func CheckNamespace(namespace *corev1.Namespace, name string, hub types.UID) error {
	if namespace == nil {
		return nil
	}
	registered, uid := namespace.Annotations[v1alpha1.AnnotationClusterName], types.UID(namespace.Annotations[v1alpha1.AnnotationHubUID])
	switch {
	case registered == "" || registered == name && uid == hub:
		return nil
	case uid == hub:
		return &RegisteredError{Name: registered}
	default:
		return &RegisteredError{Name: registered, HubUID: uid}
	}
}

// CheckSecrets returns a *RegisteredError if one of the hub's Secrets registers the cluster with
// this UID under another name.
func CheckSecrets(secrets []corev1.Secret, name string, uid types.UID) error {
	for i := range secrets {
		if s := &secrets[i]; s.Name != name && s.Annotations[v1alpha1.AnnotationClusterUID] == string(uid) {
			return &RegisteredError{Name: s.Name}
		}
	}
	return nil
}
