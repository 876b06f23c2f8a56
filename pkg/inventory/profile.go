// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package inventory

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	clientcmdv1 "k8s.io/client-go/tools/clientcmd/api/v1"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/internal/untrusted"
)

// Names of the API, as sigs.k8s.io/cluster-inventory-api spells them.
const (
	group               = "multicluster.x-k8s.io"
	version             = "v1alpha1"
	kind                = "ClusterProfile"
	labelClusterManager = "x-k8s.io/cluster-manager"
	conditionHealthy    = "ControlPlaneHealthy"
)

// Resource is the resource of ClusterProfiles.
func Resource() schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: group, Version: version, Resource: "clusterprofiles"}
}

// DefaultManager is the default name of the gateway as a cluster manager. It is also the name of
// the access provider, which consumers configure a credential plugin for.
const (
	DefaultManager = "cluster-gateway"
	AccessProvider = "cluster-gateway"
)

// Names of the properties.
const (
	propertySuffix   = "." + v1alpha1.GroupName
	PropertyUID      = "uid" + propertySuffix
	PropertyRoute    = "route" + propertySuffix
	PropertyIdentity = "identity" + propertySuffix
)

const (
	labelManagedBy = "app.kubernetes.io/managed-by"
	managedBy      = "cluster-gateway"
	// annotationLabels lists the labels of a profile that are from the cluster's Secret, so that they
	// can be removed again.
	annotationLabels = "inventory." + v1alpha1.GroupName + "/labels"
)

// maxProperty is the length of the longest value of a property that the API accepts.
const maxProperty = 1024

// Profile is a ClusterProfile, as far as the gateway writes it.
type Profile struct {
	metav1.TypeMeta `json:",inline"`
	Metadata        Metadata `json:"metadata"`
	Spec            Spec     `json:"spec"`
	Status          Status   `json:"status,omitzero"`
}

// Metadata is the metadata of a Profile.
type Metadata struct {
	Name        string            `json:"name"`
	Namespace   string            `json:"namespace"`
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// Spec is the spec of a Profile.
type Spec struct {
	DisplayName    string         `json:"displayName,omitempty"`
	ClusterManager ClusterManager `json:"clusterManager"`
}

// ClusterManager names who writes a Profile.
type ClusterManager struct {
	Name string `json:"name"`
}

// Status is the status of a Profile.
type Status struct {
	Conditions      []metav1.Condition `json:"conditions,omitempty"`
	Version         Version            `json:"version,omitzero"`
	Properties      []Property         `json:"properties,omitempty"`
	AccessProviders []Provider         `json:"accessProviders,omitempty"`
}

// Version is the version of a cluster.
type Version struct {
	Kubernetes string `json:"kubernetes,omitempty"`
}

// Property is a property of a cluster.
type Property struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Provider says how to reach a cluster.
type Provider struct {
	Name    string              `json:"name"`
	Cluster clientcmdv1.Cluster `json:"cluster"`
}

// Cluster is what a profile says about a cluster.
type Cluster struct {
	Name string
	// UID is that of the registration: a cluster that is registered again is another cluster.
	UID types.UID
	// Labels are those of the cluster's Secret.
	Labels map[string]string
	// Version, Route and Identity are empty if they are not known.
	Version, Route, Identity string
	// Ready is the condition Ready. The time of its last change may be zero, if it is not known.
	Ready metav1.Condition
}

// Access says how to reach clusters through the gateway.
type Access struct {
	// Server is the URL of the gateway or of the hub, without a path of a cluster. The name in it must
	// be in the server's certificate, because consumers do not read another name.
	Server string
	// CAData verifies the server: certificates in PEM, and nothing else. If it is empty, consumers
	// use the CAs of their operating system.
	CAData []byte
}

// New returns the profile of a cluster.
func New(c Cluster, access Access, namespace, manager string) *Profile {
	labels, copied := copyLabels(c.Labels)
	labels[labelClusterManager], labels[labelManagedBy] = manager, managedBy
	p := &Profile{
		TypeMeta: metav1.TypeMeta{APIVersion: group + "/" + version, Kind: kind},
		Metadata: Metadata{Name: c.Name, Namespace: namespace, Labels: labels},
		Spec:     Spec{DisplayName: c.Name, ClusterManager: ClusterManager{Name: manager}},
		Status: Status{
			Conditions: []metav1.Condition{{
				Type: conditionHealthy, Status: cmp.Or(c.Ready.Status, metav1.ConditionUnknown),
				Reason: cmp.Or(c.Ready.Reason, v1alpha1.ReasonNotProbed), Message: untrusted.Text(c.Ready.Message),
				LastTransitionTime: c.Ready.LastTransitionTime,
			}},
			Version: Version{Kubernetes: untrusted.Text(c.Version)},
			AccessProviders: []Provider{{Name: AccessProvider, Cluster: clientcmdv1.Cluster{
				Server: strings.TrimSuffix(access.Server, "/") + v1alpha1.ProxyPath(c.Name), CertificateAuthorityData: access.CAData,
			}}},
		},
	}
	if len(copied) > 0 {
		p.Metadata.Annotations = map[string]string{annotationLabels: strings.Join(copied, ",")}
	}
	for _, property := range []Property{{PropertyIdentity, c.Identity}, {PropertyRoute, c.Route}, {PropertyUID, string(c.UID)}} {
		// The API refuses an empty value.
		if property.Value = untrusted.Limit(property.Value, maxProperty); property.Value != "" {
			p.Status.Properties = append(p.Status.Properties, property)
		}
	}
	return p
}

// reserved are the domains of labels that mean something for the Secret and not for the cluster, or
// for whoever applied the Secret.
var reserved = []string{"kubernetes.io", "k8s.io", "oam.dev", "helm.sh", "argoproj.io", "fluxcd.io"}

// copyLabels returns the labels of a Secret that a profile gets, and their names in order.
func copyLabels(of map[string]string) (map[string]string, []string) {
	labels := map[string]string{}
	for _, key := range slices.Sorted(maps.Keys(of)) {
		domain, _, prefixed := strings.Cut(key, "/")
		if !prefixed || !slices.ContainsFunc(reserved, func(r string) bool { return domain == r || strings.HasSuffix(domain, "."+r) }) {
			labels[key] = of[key]
		}
	}
	return labels, slices.Sorted(maps.Keys(labels))
}
