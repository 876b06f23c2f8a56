// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registration

import (
	"maps"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// ToUnstructured converts a typed object into one that can be applied: it has only the fields that
// are set.
func ToUnstructured(o runtime.Object) (*unstructured.Unstructured, error) {
	gvks, _, err := scheme.Scheme.ObjectKinds(o)
	if err != nil {
		return nil, err
	}
	object, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		return nil, err
	}
	u := &unstructured.Unstructured{Object: object}
	u.SetGroupVersionKind(gvks[0])
	unstructured.RemoveNestedField(u.Object, "metadata", "creationTimestamp")
	unstructured.RemoveNestedField(u.Object, "status")
	return u, nil
}

// ManagedLabels returns the labels of every object of a registration, and extra.
func ManagedLabels(extra map[string]string) map[string]string {
	labels := map[string]string{v1alpha1.LabelManagedBy: FieldManager, "app.kubernetes.io/part-of": "cluster-gateway"}
	maps.Copy(labels, extra)
	return labels
}

// setManaged adds the labels to an object of a base.
func setManaged(o *unstructured.Unstructured) *unstructured.Unstructured {
	o.SetLabels(ManagedLabels(o.GetLabels()))
	return o
}

// Redacted returns a copy of an object that may be printed: without tokens and private keys.
func Redacted(o *unstructured.Unstructured) *unstructured.Unstructured {
	o = o.DeepCopy()
	unstructured.RemoveNestedField(o.Object, "metadata", "managedFields")
	for _, key := range []string{v1alpha1.SecretKeyToken, v1alpha1.SecretKeyMaintenanceToken, corev1.TLSPrivateKeyKey} {
		if _, found, _ := unstructured.NestedFieldNoCopy(o.Object, "data", key); found && o.GetKind() == "Secret" {
			unstructured.RemoveNestedField(o.Object, "data", key)
			// Text that explains itself, and that is not taken for a value if the object is
			// applied.
			_ = unstructured.SetNestedField(o.Object, "<not shown>", "stringData", key) // data was a map, so is its neighbor
		}
	}
	return o
}
