// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"fmt"
	"net/url"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/conversion"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

const (
	// GroupName is the API group.
	GroupName = "cluster.core.oam.dev"
	// Version is the API version of this package.
	Version = "v1alpha1"
	// ResourceName is the name of the resource, as in URLs.
	ResourceName = "clustergateways"
	// KindName is the kind of the resource.
	KindName = "ClusterGateway"
	// AgentCertificateKind is the kind of the subresource agentcertificate.
	AgentCertificateKind = "AgentCertificate"
)

// SchemeGroupVersion is the group and version of the types in this package. Do not change it.
var SchemeGroupVersion = schema.GroupVersion{Group: GroupName, Version: Version}

// Resource adds the group to the name of a resource.
func Resource(resource string) schema.GroupResource {
	return SchemeGroupVersion.WithResource(resource).GroupResource()
}

// Kind adds the group to a kind.
func Kind(kind string) schema.GroupKind {
	return SchemeGroupVersion.WithKind(kind).GroupKind()
}

// AddToScheme registers the types, the conversion of the query of proxy requests, and the fields
// that a field selector can use.
func AddToScheme(scheme *runtime.Scheme) error {
	scheme.AddKnownTypes(SchemeGroupVersion, &ClusterGateway{}, &ClusterGatewayList{}, &ClusterGatewayProxyOptions{}, &AgentCertificate{})
	metav1.AddToGroupVersion(scheme, SchemeGroupVersion)
	if err := scheme.AddConversionFunc((*url.Values)(nil), (*ClusterGatewayProxyOptions)(nil), func(a, b any, _ conversion.Scope) error {
		convertURLValuesToProxyOptions(a.(*url.Values), b.(*ClusterGatewayProxyOptions))
		return nil
	}); err != nil {
		return fmt.Errorf("register the conversion of proxy options: %w", err)
	}
	if err := scheme.AddFieldLabelConversionFunc(SchemeGroupVersion.WithKind(KindName), convertFieldLabel); err != nil {
		return fmt.Errorf("register the field labels of %s: %w", KindName, err)
	}
	return nil
}

// convertURLValuesToProxyOptions reads the path only: all other parameters are for the managed
// cluster's API server.
func convertURLValuesToProxyOptions(in *url.Values, out *ClusterGatewayProxyOptions) {
	out.Path = in.Get("path")
}

// convertFieldLabel accepts the field selectors that the hub can evaluate, which knows only the
// labels and the name of the Secret.
func convertFieldLabel(label, value string) (string, string, error) {
	switch label {
	case FieldName, FieldEndpointType, FieldCredentialType:
		return label, value, nil
	}
	return "", "", fmt.Errorf("field label %q is not supported: use %s, %s or %s", label, FieldName, FieldEndpointType, FieldCredentialType)
}
