// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

// deleteNamespace removes everything from a cluster: the namespace owns the objects that are not in
// it. Through the gateway, the deletion cannot be observed to its end, because it deletes the
// agent.
func (u *unregisterRun) deleteNamespace(ctx context.Context, target *clusterClient, wait bool) error {
	namespaces := target.kube.CoreV1().Namespaces()
	namespace, err := namespaces.Get(ctx, registration.AgentNamespace, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		if wait {
			if err := u.deleteUnowned(ctx, target); err != nil {
				return err
			}
		}
		return u.step(ctx, "cluster", "has no namespace %s", registration.AgentNamespace)
	case apierrors.IsForbidden(err):
		return u.forbidden(err)
	case err != nil:
		return target.explain(err)
	}
	if err := u.hub.identify(ctx); err != nil {
		return err
	}
	if err := registration.CheckNamespace(namespace, u.name, u.hub.uid); err != nil {
		return err
	}
	options := metav1.DeleteOptions{
		Preconditions: &metav1.Preconditions{UID: &namespace.UID}, PropagationPolicy: ptr.To(metav1.DeletePropagationBackground),
		DryRun: registration.DryRunOption(u.o.dryRun),
	}
	err = namespaces.Delete(ctx, registration.AgentNamespace, options)
	switch {
	case apierrors.IsNotFound(err):
	case apierrors.IsForbidden(err) && !wait:
		return u.forbidden(err)
	case err != nil:
		return target.explain(err)
	}
	if u.o.dryRun {
		return u.step(ctx, "cluster", "namespace %s would be deleted, and with it everything that register applied", registration.AgentNamespace)
	}
	if err := u.step(ctx, "cluster", "namespace %s deleted, and with it everything that register applied", registration.AgentNamespace); err != nil || !wait {
		return err
	}
	return u.waitGone(ctx, target, namespace)
}

func (u *unregisterRun) forbidden(err error) error {
	return fmt.Errorf("the gateway may not delete the registration in the cluster (%w), and nothing was changed. Set --cluster-kubeconfig, or --keep-agent to change nothing in the cluster", err)
}

// waitGone waits until the namespace and the cluster-scoped objects that it owned are deleted.
func (u *unregisterRun) waitGone(ctx context.Context, target *clusterClient, namespace *corev1.Namespace) error {
	if err := u.deleteUnowned(ctx, target); err != nil {
		return err
	}
	waitCtx, cancel := context.WithTimeout(ctx, u.o.wait)
	defer cancel()
	object, err := registration.ToUnstructured(namespace)
	if err != nil {
		return err
	}
	err = target.waitDeleted(waitCtx, object)
	for err == nil {
		var left []string
		if left, err = ownedBy(waitCtx, target); err == nil && len(left) == 0 {
			return u.step(ctx, "gone", "nothing is left in the cluster")
		} else if err == nil && pause(waitCtx, pollInterval) != nil {
			err = fmt.Errorf("%s: not deleted yet: %s", target.title, strings.Join(left, ", "))
		}
	}
	if ctx.Err() == nil && errors.Is(waitCtx.Err(), context.DeadlineExceeded) {
		return u.step(ctx, "gone", "not finished after %s (%v); the cluster deletes the rest in the background", u.o.wait, err)
	}
	return err
}

// deleteUnowned deletes the cluster-scoped objects of an invitation that was not used: the
// namespace does not own them yet.
func (u *unregisterRun) deleteUnowned(ctx context.Context, target *clusterClient) error {
	rbac, classes := target.kube.RbacV1(), target.kube.SchedulingV1().PriorityClasses()
	selector, options := metav1.ListOptions{LabelSelector: v1alpha1.LabelManagedBy + "=" + registration.FieldManager}, metav1.DeleteOptions{DryRun: registration.DryRunOption(u.o.dryRun)}
	var errs []error
	remove := func(o metav1.Object, remove func(context.Context, string, metav1.DeleteOptions) error) {
		if len(o.GetOwnerReferences()) > 0 || !strings.HasPrefix(o.GetName(), registration.AccessPrefix) && o.GetName() != registration.AgentPriorityClass {
			return
		}
		if err := remove(ctx, o.GetName(), options); err != nil && !apierrors.IsNotFound(err) {
			errs = append(errs, target.explain(err))
		}
	}
	bindings, err := rbac.ClusterRoleBindings().List(ctx, selector)
	if err != nil {
		return target.explain(err)
	}
	for i := range bindings.Items {
		remove(&bindings.Items[i], rbac.ClusterRoleBindings().Delete)
	}
	roles, err := rbac.ClusterRoles().List(ctx, selector)
	if err != nil {
		return target.explain(err)
	}
	for i := range roles.Items {
		remove(&roles.Items[i], rbac.ClusterRoles().Delete)
	}
	list, err := classes.List(ctx, selector)
	if err != nil {
		return target.explain(err)
	}
	for i := range list.Items {
		remove(&list.Items[i], classes.Delete)
	}
	return errors.Join(errs...)
}

// ownedBy lists the cluster-scoped objects of a registration.
func ownedBy(ctx context.Context, s *clusterClient) ([]string, error) {
	var names []string
	selector := metav1.ListOptions{LabelSelector: v1alpha1.LabelManagedBy + "=" + registration.FieldManager}
	bindings, err := s.kube.RbacV1().ClusterRoleBindings().List(ctx, selector)
	if err != nil {
		return nil, s.explain(err)
	}
	for _, o := range bindings.Items {
		names = append(names, "ClusterRoleBinding "+o.Name)
	}
	roles, err := s.kube.RbacV1().ClusterRoles().List(ctx, selector)
	if err != nil {
		return nil, s.explain(err)
	}
	for _, o := range roles.Items {
		names = append(names, "ClusterRole "+o.Name)
	}
	classes, err := s.kube.SchedulingV1().PriorityClasses().List(ctx, selector)
	if err != nil {
		return nil, s.explain(err)
	}
	for _, o := range classes.Items {
		names = append(names, "PriorityClass "+o.Name)
	}
	return names, nil
}
