// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// NewScheme returns the scheme of the API server. In addition to the types that clients need
// (v1alpha1.AddToScheme), it contains the same types as the internal version, to which the generic
// API server converts on a write, and the kinds that it expects in the core group.
func NewScheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("build the API server's scheme: %w", err)
	}
	scheme.AddKnownTypes(schema.GroupVersion{Group: v1alpha1.GroupName, Version: runtime.APIVersionInternal},
		&v1alpha1.ClusterGateway{}, &v1alpha1.ClusterGatewayList{}, &v1alpha1.AgentCertificate{})

	core := schema.GroupVersion{Version: "v1"}
	metav1.AddToGroupVersion(scheme, core)
	scheme.AddUnversionedTypes(core, &metav1.Status{}, &metav1.APIVersions{}, &metav1.APIGroupList{}, &metav1.APIGroup{}, &metav1.APIResourceList{})
	if err := scheme.SetVersionPriority(v1alpha1.SchemeGroupVersion); err != nil {
		return nil, fmt.Errorf("build the API server's scheme: %w", err)
	}
	return scheme, nil
}
