// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registration

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/utils/ptr"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// ResourceOf returns the resource of a kind that a registration or an invitation applies, and
// whether its objects have a namespace. It uses no discovery, because the kinds are known and a
// cluster could return anything.
func ResourceOf(gvk schema.GroupVersionKind) (gvr schema.GroupVersionResource, namespaced bool, err error) {
	resource, known := map[string]struct {
		plural     string
		namespaced bool
	}{
		"Namespace":           {"namespaces", false},
		"ServiceAccount":      {"serviceaccounts", true},
		"Secret":              {"secrets", true},
		"ConfigMap":           {"configmaps", true},
		"Role":                {"roles", true},
		"RoleBinding":         {"rolebindings", true},
		"ClusterRole":         {"clusterroles", false},
		"ClusterRoleBinding":  {"clusterrolebindings", false},
		"PriorityClass":       {"priorityclasses", false},
		"Deployment":          {"deployments", true},
		"PodDisruptionBudget": {"poddisruptionbudgets", true},
		"NetworkPolicy":       {"networkpolicies", true},
		"Job":                 {"jobs", true},
	}[gvk.Kind]
	if !known {
		return gvr, false, fmt.Errorf("a registration has no objects of kind %s", gvk.Kind)
	}
	return gvk.GroupVersion().WithResource(resource.plural), resource.namespaced, nil
}

// ResourceFor returns the client for the resource of an object, in the object's namespace if it has
// one.
func ResourceFor(client dynamic.Interface, o *unstructured.Unstructured) (dynamic.ResourceInterface, error) {
	gvr, namespaced, err := ResourceOf(o.GroupVersionKind())
	if err != nil {
		return nil, err
	}
	if namespaced {
		return client.Resource(gvr).Namespace(o.GetNamespace()), nil
	}
	return client.Resource(gvr), nil
}

// Outcome is what applying an object did, or in a dry run would do.
type Outcome string

// The outcomes.
const (
	Created   Outcome = "created"
	Changed   Outcome = "changed"
	Unchanged Outcome = "unchanged"
)

// DryRunOption returns the option of a request that the server checks but does not execute, or nil.
func DryRunOption(dryRun bool) []string {
	if dryRun {
		return []string{metav1.DryRunAll}
	}
	return nil
}

// ServerSideApply applies an object and returns the object that the server has then.
func ServerSideApply(ctx context.Context, client dynamic.Interface, o *unstructured.Unstructured, dryRun bool) (*unstructured.Unstructured, error) {
	resource, err := ResourceFor(client, o)
	if err != nil {
		return nil, err
	}
	return resource.Apply(ctx, o.GetName(), o, metav1.ApplyOptions{FieldManager: FieldManager, Force: true, DryRun: DryRunOption(dryRun)})
}

// Apply applies an object and compares the previous object on the server with the new one. In a dry
// run, after is what the server would have. Errors are those of the client.
func Apply(ctx context.Context, client dynamic.Interface, o *unstructured.Unstructured, dryRun bool) (outcome Outcome, after *unstructured.Unstructured, err error) {
	resource, err := ResourceFor(client, o)
	if err != nil {
		return "", nil, err
	}
	before, err := resource.Get(ctx, o.GetName(), metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		before = nil
	case err != nil:
		return "", nil, err
	}
	after, err = ServerSideApply(ctx, client, o, dryRun)
	switch {
	case dryRun && before == nil && apierrors.IsNotFound(err):
		return Created, o, nil // its namespace does not exist yet
	case err != nil:
		return "", nil, err
	case before == nil:
		return Created, after, nil
	case sameObject(before, after):
		return Unchanged, after, nil
	default:
		return Changed, after, nil
	}
}

// sameObject compares objects without the fields that differ between a dry run and what is stored.
func sameObject(a, b *unstructured.Unstructured) bool {
	a, b = a.DeepCopy(), b.DeepCopy()
	for _, o := range []*unstructured.Unstructured{a, b} {
		for _, field := range []string{"managedFields", "resourceVersion", "generation"} {
			unstructured.RemoveNestedField(o.Object, "metadata", field)
		}
	}
	return equality.Semantic.DeepEqual(a.Object, b.Object)
}

// Remove deletes an object if a registration applied it, and reports whether it existed. It does
// not delete an object that another tool manages.
func Remove(ctx context.Context, client dynamic.Interface, o *unstructured.Unstructured, dryRun bool) (found bool, err error) {
	resource, err := ResourceFor(client, o)
	if err != nil {
		return false, err
	}
	current, err := resource.Get(ctx, o.GetName(), metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return false, nil
	case err != nil:
		return false, err
	case current.GetLabels()[v1alpha1.LabelManagedBy] != FieldManager:
		return false, nil
	}
	err = resource.Delete(ctx, o.GetName(), metav1.DeleteOptions{
		Preconditions:     &metav1.Preconditions{UID: ptr.To(current.GetUID())},
		PropagationPolicy: ptr.To(metav1.DeletePropagationBackground), DryRun: DryRunOption(dryRun),
	})
	if apierrors.IsNotFound(err) {
		err = nil
	}
	return true, err
}
