// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package labtest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/metadata"

	"github.com/oam-dev/cluster-gateway/test/lab"
)

// kinds are the kinds that a registration could leave in a cluster.
func kinds() map[string]schema.GroupVersionResource {
	rbac := schema.GroupVersion{Group: "rbac.authorization.k8s.io", Version: "v1"}
	core := schema.GroupVersion{Version: "v1"}
	return map[string]schema.GroupVersionResource{
		"Namespace":           core.WithResource("namespaces"),
		"ServiceAccount":      core.WithResource("serviceaccounts"),
		"Secret":              core.WithResource("secrets"),
		"ConfigMap":           core.WithResource("configmaps"),
		"Deployment":          {Group: "apps", Version: "v1", Resource: "deployments"},
		"Job":                 {Group: "batch", Version: "v1", Resource: "jobs"},
		"Role":                rbac.WithResource("roles"),
		"RoleBinding":         rbac.WithResource("rolebindings"),
		"ClusterRole":         rbac.WithResource("clusterroles"),
		"ClusterRoleBinding":  rbac.WithResource("clusterrolebindings"),
		"PriorityClass":       {Group: "scheduling.k8s.io", Version: "v1", Resource: "priorityclasses"},
		"PodDisruptionBudget": {Group: "policy", Version: "v1", Resource: "poddisruptionbudgets"},
		"NetworkPolicy":       {Group: "networking.k8s.io", Version: "v1", Resource: "networkpolicies"},
	}
}

// Objects returns everything on a bare API server that a registration could have
// left there: "KIND NAMESPACE/NAME", with the resource version. It first waits
// until namespaces that are being deleted are gone, and deletes the objects whose
// owner is gone, as the garbage collector would.
func Objects(ctx context.Context, t testing.TB, c *lab.Cluster) map[string]string {
	t.Helper()
	var found map[string]string
	Within(t, Timeout, "the objects of "+c.Name()+" to be listed with nothing left to delete", func() (err error) {
		found, err = listObjects(ctx, c)
		return err
	})
	return found
}

func listObjects(ctx context.Context, c *lab.Cluster) (map[string]string, error) {
	client, err := metadata.NewForConfig(quiet(c))
	if err != nil {
		return nil, err
	}
	type object struct {
		resource schema.GroupVersionResource
		metav1.PartialObjectMetadata
	}
	found, versions, uids := []object{}, map[string]string{}, map[types.UID]bool{}
	for kind, resource := range kinds() {
		list, err := client.Resource(resource).List(ctx, metav1.ListOptions{})
		if err != nil {
			return nil, err
		}
		for _, o := range list.Items {
			if kind == "Namespace" && o.DeletionTimestamp != nil {
				return nil, fmt.Errorf("namespace %s is being deleted", o.Name)
			}
			found, uids[o.UID] = append(found, object{resource, o}), true
			versions[kind+" "+o.Namespace+"/"+o.Name] = o.ResourceVersion
		}
	}
	collected := 0
	for _, o := range found {
		if len(o.OwnerReferences) == 0 || slices.ContainsFunc(o.OwnerReferences, func(r metav1.OwnerReference) bool { return uids[r.UID] }) {
			continue
		}
		collected++
		err := client.Resource(o.resource).Namespace(o.Namespace).Delete(ctx, o.Name, metav1.DeleteOptions{
			Preconditions: metav1.NewUIDPreconditions(string(o.UID)), PropagationPolicy: background(),
		})
		if err != nil && !apierrors.IsNotFound(err) {
			return nil, err
		}
	}
	if collected > 0 {
		return nil, fmt.Errorf("%d objects have just been deleted with their owner", collected)
	}
	if len(versions) < 10 {
		return nil, errors.New("there are fewer than 10 objects")
	}
	return versions, nil
}

// Same checks that two results of [Objects] are the same objects at the same versions.
func Same(t testing.TB, what string, want, got map[string]string) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if version, found := got[name]; found && version != want[name] {
			t.Errorf("%s: %s is at version %q, and was at %q", what, name, version, want[name])
		}
	}
	SameNames(t, what, want, got)
}

// SameNames checks that two results of [Objects] are the same objects, at any version.
func SameNames(t testing.TB, what string, want, got map[string]string) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(got)) {
		if _, wanted := want[name]; !wanted {
			t.Errorf("%s: %s was not there before", what, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if _, found := got[name]; !found {
			t.Errorf("%s: %s is gone", what, name)
		}
	}
}
