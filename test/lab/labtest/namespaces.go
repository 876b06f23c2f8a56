// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package labtest

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"

	"github.com/oam-dev/cluster-gateway/test/lab"
)

// removeNamespaces does the only task of kube-controller-manager that tests on a bare API server
// need: it empties and removes the deleted namespaces, until ctx ends.
func removeNamespaces(ctx context.Context, c *lab.Cluster) {
	for ctx.Err() == nil {
		if err := followNamespaces(ctx, c); err != nil && ctx.Err() == nil {
			fmt.Fprintf(os.Stderr, "labtest: removing namespaces of %s: %v\n", c.Name(), err)
			time.Sleep(100 * time.Millisecond)
		}
	}
}

// background deletes an object at once. By default, some kinds stay until the garbage collector has
// checked their dependents, and no garbage collector runs.
func background() *metav1.DeletionPropagation { return ptr.To(metav1.DeletePropagationBackground) }

// quiet returns a configuration of the administrator that logs no warnings of the API server.
func quiet(c *lab.Cluster) *rest.Config {
	config := c.RESTConfig()
	config.WarningHandler = rest.NoWarnings{}
	return config
}

func followNamespaces(ctx context.Context, c *lab.Cluster) error {
	// Without a resource version, the watch starts with those that exist.
	watch, err := c.Client().CoreV1().Namespaces().Watch(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	defer watch.Stop()
	for event := range watch.ResultChan() {
		namespace, ok := event.Object.(*corev1.Namespace)
		if !ok || namespace.DeletionTimestamp == nil || len(namespace.Spec.Finalizers) == 0 {
			continue
		}
		if err := removeNamespace(ctx, c, namespace); err != nil {
			return err
		}
	}
	return nil
}

func removeNamespace(ctx context.Context, c *lab.Cluster, namespace *corev1.Namespace) error {
	// An event can be about a namespace that has been removed, and created again, since.
	current, err := c.Client().CoreV1().Namespaces().Get(ctx, namespace.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) || err == nil && current.UID != namespace.UID {
		return nil
	}
	if err != nil {
		return err
	}
	lists, err := c.Client().Discovery().ServerPreferredNamespacedResources()
	if err != nil && len(lists) == 0 { // ignore a group that an aggregated server does not serve at the moment
		return err
	}
	client, err := metadata.NewForConfig(quiet(c))
	if err != nil {
		return err
	}
	for _, list := range lists {
		version, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			return err
		}
		for _, resource := range list.APIResources {
			if !slices.Contains(resource.Verbs, "deletecollection") || strings.Contains(resource.Name, "/") {
				continue
			}
			objects := client.Resource(version.WithResource(resource.Name)).Namespace(namespace.Name)
			o := metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0), PropagationPolicy: background()}
			if err := objects.DeleteCollection(ctx, o, metav1.ListOptions{}); err != nil {
				return fmt.Errorf("deleting %s: %w", resource.Name, err)
			}
		}
	}
	namespace = namespace.DeepCopy()
	namespace.Spec.Finalizers = nil
	_, err = c.Client().CoreV1().Namespaces().Finalize(ctx, namespace, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) { // removed already, or another event follows
		return nil
	}
	if err != nil {
		return err
	}
	_, _ = listObjects(ctx, c) // this deletes what the namespace owned; it is tried again with each list
	return nil
}
