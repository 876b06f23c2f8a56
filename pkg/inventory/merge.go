// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package inventory

import (
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
)

// owned reports whether the gateway created an object, so that it may change and delete it.
func owned(o *unstructured.Unstructured, manager string) bool {
	return clusterManager(o) == manager && o.GetLabels()[labelManagedBy] == managedBy
}

func clusterManager(o *unstructured.Unstructured) string {
	name, _, _ := unstructured.NestedString(o.Object, "spec", "clusterManager", "name")
	return name
}

// toObject returns a profile in the form of the dynamic client.
func toObject(p *Profile) (*unstructured.Unstructured, error) {
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(p)
	return &unstructured.Unstructured{Object: content}, err
}

// mergeObject returns a copy of have with the metadata and the spec of want, and whether it differs
// from have. Labels and annotations of others stay.
func mergeObject(have *unstructured.Unstructured, want *Profile) (_ *unstructured.Unstructured, changed bool, err error) {
	next := have.DeepCopy()
	labels, annotations := next.GetLabels(), next.GetAnnotations()
	if labels == nil {
		labels = map[string]string{}
	}
	if annotations == nil {
		annotations = map[string]string{}
	}
	for key := range strings.SplitSeq(annotations[annotationLabels], ",") {
		if key != labelManagedBy { // somebody else may have written the annotation
			delete(labels, key)
		}
	}
	delete(annotations, annotationLabels)
	maps.Copy(labels, want.Metadata.Labels)
	maps.Copy(annotations, want.Metadata.Annotations)
	next.SetLabels(labels)
	next.SetAnnotations(annotations)
	if err := unstructured.SetNestedField(next.Object, want.Spec.DisplayName, "spec", "displayName"); err != nil {
		return nil, false, err
	}
	changed = !maps.Equal(labels, have.GetLabels()) || !maps.Equal(annotations, have.GetAnnotations()) ||
		!equality.Semantic.DeepEqual(next.Object["spec"], have.Object["spec"])
	return next, changed, nil
}

// mergeStatus returns a copy of have with the status of want, and whether it differs from have.
// Conditions, properties and access providers of others stay, as do fields that this package does
// not know.
func mergeStatus(have *unstructured.Unstructured, want *Profile) (_ *unstructured.Unstructured, changed bool, err error) {
	current := &Profile{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(have.Object, current); err != nil {
		return nil, false, err
	}
	// The raw lists keep the fields of others that the types here do not have.
	next := have.DeepCopy()
	wanted, err := toObject(want)
	if err != nil {
		return nil, false, err
	}
	for field, mine := range map[string]func(name string) bool{
		"properties":      func(name string) bool { return strings.HasSuffix(name, propertySuffix) },
		"accessProviders": func(name string) bool { return name == AccessProvider },
	} {
		list, _, _ := unstructured.NestedSlice(next.Object, "status", field)
		list = slices.DeleteFunc(list, func(item any) bool {
			m, ok := item.(map[string]any)
			name, _ := m["name"].(string)
			return !ok || mine(name)
		})
		own, _, _ := unstructured.NestedSlice(wanted.Object, "status", field)
		if err := unstructured.SetNestedSlice(next.Object, append(own, list...), "status", field); err != nil {
			return nil, false, err
		}
	}
	if err := setConditions(next, current, want); err != nil {
		return nil, false, err
	}
	unstructured.RemoveNestedField(next.Object, "status", "version")
	if v := want.Status.Version.Kubernetes; v != "" {
		if err := unstructured.SetNestedField(next.Object, v, "status", "version", "kubernetes"); err != nil {
			return nil, false, err
		}
	}
	return next, !equality.Semantic.DeepEqual(next.Object["status"], have.Object["status"]), nil
}

// setConditions sets the conditions of want in next. current is the typed form of next.
func setConditions(next *unstructured.Unstructured, current, want *Profile) error {
	for _, c := range want.Status.Conditions {
		meta.SetStatusCondition(&current.Status.Conditions, c)
	}
	conditions, err := toObject(&Profile{Status: Status{Conditions: current.Status.Conditions}})
	if err != nil {
		return err
	}
	list, _, err := unstructured.NestedSlice(conditions.Object, "status", "conditions")
	if err != nil {
		return err
	}
	return unstructured.SetNestedSlice(next.Object, list, "status", "conditions")
}
