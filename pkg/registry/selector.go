// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// hubListOptions converts the options of a request for ClusterGateways to options for the Secrets.
// The hub evaluates all selectors. If the gateway dropped events itself, it would have to send a
// deletion for an object that stops matching, which the hub never sent.
func hubListOptions(options *internalversion.ListOptions) (metav1.ListOptions, error) {
	isCluster := requirement(v1alpha1.LabelCredentialType, selection.Exists)
	selector := labels.NewSelector().Add(isCluster)
	if options == nil {
		return metav1.ListOptions{LabelSelector: selector.String()}, nil
	}
	if options.LabelSelector != nil {
		requirements, selectable := options.LabelSelector.Requirements()
		if !selectable {
			requirements = nothing()
		}
		selector = selector.Add(requirements...)
	}
	nameSelector := fields.Everything()
	if options.FieldSelector != nil {
		for _, field := range options.FieldSelector.Requirements() {
			if field.Field == v1alpha1.FieldName {
				nameSelector = fields.AndSelectors(nameSelector, nameTerm(field))
				continue
			}
			requirements, err := fieldAsLabels(field)
			if err != nil {
				return metav1.ListOptions{}, err
			}
			selector = selector.Add(requirements...)
		}
	}
	return metav1.ListOptions{
		LabelSelector:        selector.String(),
		FieldSelector:        nameSelector.String(),
		AllowWatchBookmarks:  options.AllowWatchBookmarks,
		ResourceVersion:      options.ResourceVersion,
		ResourceVersionMatch: options.ResourceVersionMatch,
		TimeoutSeconds:       options.TimeoutSeconds,
		Limit:                options.Limit,
		Continue:             options.Continue,
		SendInitialEvents:    options.SendInitialEvents,
		ShardSelector:        options.ShardSelector,
	}, nil
}

func nameTerm(field fields.Requirement) fields.Selector {
	if field.Operator == selection.NotEquals {
		return fields.OneTermNotEqualSelector(field.Field, field.Value)
	}
	return fields.OneTermEqualSelector(field.Field, field.Value)
}

// fieldAsLabels converts a requirement for a field that represents a label to requirements for the
// label.
func fieldAsLabels(field fields.Requirement) ([]labels.Requirement, error) {
	negate := field.Operator == selection.NotEquals
	switch field.Field {
	case v1alpha1.FieldEndpointType:
		return endpointTypeLabels(v1alpha1.EndpointType(field.Value), negate), nil
	case v1alpha1.FieldCredentialType:
		return credentialTypeLabels(v1alpha1.CredentialType(field.Value), negate), nil
	}
	return nil, apierrors.NewBadRequest(fmt.Sprintf("field selector: %q is not supported: use %s, %s or %s",
		field.Field, v1alpha1.FieldName, v1alpha1.FieldEndpointType, v1alpha1.FieldCredentialType))
}

// endpointTypeLabels follows cluster.Render: the field is ClusterProxy if the label is, and Const
// otherwise.
func endpointTypeLabels(value v1alpha1.EndpointType, negate bool) []labels.Requirement {
	tunnel := string(v1alpha1.EndpointTypeClusterProxy)
	switch value {
	case v1alpha1.EndpointTypeConst, v1alpha1.EndpointTypeClusterProxy:
		if (value == v1alpha1.EndpointTypeClusterProxy) != negate {
			return []labels.Requirement{requirement(v1alpha1.LabelEndpointType, selection.In, tunnel)}
		}
		return []labels.Requirement{requirement(v1alpha1.LabelEndpointType, selection.NotIn, tunnel)}
	}
	return never(negate)
}

// credentialTypeLabels treats X509Certificate and its alias as the same value.
func credentialTypeLabels(value v1alpha1.CredentialType, negate bool) []labels.Requirement {
	values := []string{string(value)}
	switch value {
	case v1alpha1.CredentialTypeX509, v1alpha1.CredentialTypeX509Alias:
		values = []string{string(v1alpha1.CredentialTypeX509), string(v1alpha1.CredentialTypeX509Alias)}
	default:
		if len(validation.IsValidLabelValue(string(value))) > 0 {
			return never(negate)
		}
	}
	if negate {
		return []labels.Requirement{requirement(v1alpha1.LabelCredentialType, selection.NotIn, values...)}
	}
	return []labels.Requirement{requirement(v1alpha1.LabelCredentialType, selection.In, values...)}
}

// never is for a value that the field cannot have: no object has it.
func never(negate bool) []labels.Requirement {
	if negate {
		return nil
	}
	return nothing()
}

// nothing contradicts the requirement that is always present, so nothing matches. The hub still
// returns a resource version, and bookmarks for a watch.
func nothing() []labels.Requirement {
	return []labels.Requirement{requirement(v1alpha1.LabelCredentialType, selection.DoesNotExist)}
}

// requirement must be called with valid keys and values, for which NewRequirement does not return
// an error.
func requirement(key string, op selection.Operator, values ...string) labels.Requirement {
	r, err := labels.NewRequirement(key, op, values)
	if err != nil {
		return labels.Requirement{}
	}
	return *r
}
