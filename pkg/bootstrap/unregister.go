// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

// insistence is how long a cluster that does not answer is asked, before it is taken for gone: an agent that is replaced, or a gateway that is started
// again, is back by then.
const insistence = 30 * time.Second

type unregisterOptions struct {
	cluster           clusterOptions
	keepAgent, dryRun bool
	wait              time.Duration
}

func (a *app) unregisterCommand() *cobra.Command {
	// The agent's Pods have a grace period of 75 s, and the namespace goes after them.
	o := &unregisterOptions{wait: 2 * time.Minute}
	cmd := &cobra.Command{
		Use:   "unregister NAME",
		Short: "Remove a cluster: its agent, the gateway's account there, and its Secret on the hub",
		Long: `unregister removes what register applied, on the hub and in the cluster. It reaches the cluster through
the gateway, or with --cluster-kubeconfig. With --cluster-kubeconfig, it also waits until everything is
removed, which can take 75 s, because the agent's Pods have that long to stop.

If the gateway reports for half a minute that it has no route to the cluster, the cluster is removed
from the hub only, and the command prints what is left in the cluster. If it is not certain that there
is no route, nothing is removed.`,
		Example: `  agent-bootstrap unregister edge-1

  # The gateway may not delete objects in the cluster (--access view): use the cluster's own kubeconfig.
  agent-bootstrap unregister edge-1 --cluster-kubeconfig edge-1.kubeconfig

  # Change nothing in the cluster.
  agent-bootstrap unregister edge-1 --keep-agent`,
		Args: oneName,
		RunE: func(cmd *cobra.Command, args []string) error {
			u := &unregistration{app: a, o: o, name: args[0]}
			return u.run(cmd.Context())
		},
	}
	fs := cmd.Flags()
	o.cluster.addFlags(fs, ". Default: reach the cluster through the gateway")
	fs.BoolVar(&o.keepAgent, "keep-agent", o.keepAgent, "Remove the cluster from the hub only, and leave everything in the cluster.")
	fs.BoolVar(&o.dryRun, "dry-run", o.dryRun, "Change nothing, and print what the command would do.")
	fs.DurationVar(&o.wait, "wait", o.wait, "With --cluster-kubeconfig: how long to wait until everything is removed. The agent's Pods have 75s to stop.")
	return cmd
}

// unregistration is one run of unregister.
type unregistration struct {
	*app
	o          *unregisterOptions
	name       string
	hub        *clusterClient
	registered *corev1.Secret
}

func (u *unregistration) run(ctx context.Context) (err error) {
	if err := checkName(u.name); err != nil {
		return err
	}
	u.say("Removing cluster %q", u.name)
	if u.hub, err = u.connectHub(ctx); err != nil {
		return err
	}
	if err := u.find(ctx); err != nil {
		return err
	}
	if !u.o.keepAgent {
		if err := u.removeFromCluster(ctx); err != nil {
			return err
		}
	}
	if err := u.removeFromHub(ctx); err != nil {
		return err
	}
	if u.o.dryRun {
		u.say("\nNothing was changed.")
		return nil
	}
	u.say("\nCluster %q is removed.", u.name)
	return nil
}

// find reads the registration, which may be gone already.
func (u *unregistration) find(ctx context.Context) error {
	secret, err := u.hub.kube.CoreV1().Secrets(u.app.hub.namespace).Get(ctx, u.name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return u.hub.explain(err)
	case !cluster.IsCluster(secret):
		return fmt.Errorf("the Secret %s/%s on the hub is no cluster, and is left alone", secret.Namespace, secret.Name)
	}
	u.registered = secret
	return nil
}

func (u *unregistration) removeFromCluster(ctx context.Context) error {
	if u.o.cluster.kubeconfig != "" {
		target, err := u.identifyCluster(ctx, u.name, u.o.cluster)
		if err != nil {
			return err
		}
		if uid := u.registeredUID(); uid != "" && uid != string(target.uid) {
			return fmt.Errorf("--cluster-kubeconfig is another cluster's: %q is %s, and this one is %s", u.name, uid, target.uid)
		}
		return u.deleteNamespace(ctx, target, true)
	}
	if u.registered == nil {
		return u.step(ctx, "cluster", "not registered, so it cannot be reached through the gateway. To remove what is left in it, use --cluster-kubeconfig")
	}
	target, err := throughGateway(u.hub, u.name)
	if err != nil {
		return err
	}
	gone, err := u.reach(ctx)
	switch {
	case err != nil:
		return err
	case gone != nil:
		return u.step(ctx, "cluster", "cannot be reached (%v), so nothing in it is removed. If it comes back, run there: kubectl delete namespace %s", gone, registration.AgentNamespace)
	}
	return u.deleteNamespace(ctx, target, false)
}

// reach asks the cluster for an answer through the gateway, for a while. gone is the gateway's word, without another in between, that there is no way
// to it; err any other failure, which a cluster that is there may have as well.
func (u *unregistration) reach(ctx context.Context) (gone, err error) {
	patience, cancel := context.WithTimeout(ctx, 2*insistence)
	defer cancel()
	began, said := time.Now(), false
	var away time.Time // since when the gateway says so; zero: it does not
	for {
		_, err := u.hub.reach(patience, u.name)
		switch {
		case err == nil:
			return nil, nil
		case ctx.Err() != nil:
			return nil, u.hub.explain(ctx.Err())
		case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
			return nil, u.hub.explain(err)
		case !noWay(err):
			away = time.Time{}
			if time.Since(began) >= insistence {
				return nil, fmt.Errorf("whether the cluster is there could not be found out within %s (%w), and nothing was changed. Try again, give --cluster-kubeconfig, or --keep-agent to leave the cluster as it is",
					time.Since(began).Round(time.Second), err)
			}
		case away.IsZero():
			away = time.Now()
		case time.Since(away) >= insistence:
			return err, nil
		}
		if !said {
			u.say("  %-12s does not answer. Trying again for %s: %v", "cluster", insistence, err)
			said = true
		}
		_ = pause(patience, time.Second) // when the time is over, the next request says so
	}
}

// noWay is that the gateway says of a cluster that there is no way to it.
func noWay(err error) bool {
	switch causeOf(err) {
	case v1alpha1.CauseTunnel, v1alpha1.CauseAgent, v1alpha1.CauseEndpoint, v1alpha1.CauseTLS:
		return true
	default:
		return false
	}
}

func (u *unregistration) registeredUID() string {
	if u.registered == nil {
		return ""
	}
	return u.registered.Annotations[v1alpha1.AnnotationClusterUID]
}

// deleteNamespace removes everything from a cluster: what is not in the namespace is owned by it. Through the gateway nobody can watch it
// go, since the way goes with it.
func (u *unregistration) deleteNamespace(ctx context.Context, target *clusterClient, wait bool) error {
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
	options := metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &namespace.UID}, PropagationPolicy: ptr.To(metav1.DeletePropagationBackground)}
	if u.o.dryRun {
		options.DryRun = []string{metav1.DryRunAll}
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
		return u.step(ctx, "cluster", "namespace %s would be deleted, with everything that register applied", registration.AgentNamespace)
	}
	if err := u.step(ctx, "cluster", "namespace %s deleted, with everything that register applied", registration.AgentNamespace); err != nil || !wait {
		return err
	}
	return u.waitGone(ctx, target, namespace)
}

func (u *unregistration) forbidden(err error) error {
	return fmt.Errorf("the gateway may not remove anything from the cluster (%w), and nothing was changed. Give --cluster-kubeconfig, or --keep-agent to leave the cluster as it is", err)
}

// waitGone waits for the namespace, and for the cluster-scoped objects that it owned.
func (u *unregistration) waitGone(ctx context.Context, target *clusterClient, namespace *corev1.Namespace) error {
	if err := u.deleteUnowned(ctx, target); err != nil {
		return err
	}
	patience, cancel := context.WithTimeout(ctx, u.o.wait)
	defer cancel()
	object, err := registration.ToUnstructured(namespace)
	if err != nil {
		return err
	}
	err = target.gone(patience, object)
	for err == nil {
		var left []string
		if left, err = ownedBy(patience, target); err == nil && len(left) == 0 {
			return u.step(ctx, "gone", "nothing is left in the cluster")
		} else if err == nil && pause(patience, pollInterval) != nil {
			err = fmt.Errorf("%s: still there: %s", target.title, strings.Join(left, ", "))
		}
	}
	if ctx.Err() == nil && errors.Is(patience.Err(), context.DeadlineExceeded) {
		return u.step(ctx, "gone", "not everything is removed after %s (%v). The cluster continues by itself", u.o.wait, err)
	}
	return err
}

// deleteUnowned removes the cluster-scoped objects of an invitation that did not lead to a registration: nobody has made them the namespace's.
func (u *unregistration) deleteUnowned(ctx context.Context, target *clusterClient) error {
	rbac, classes := target.kube.RbacV1(), target.kube.SchedulingV1().PriorityClasses()
	selector, options := metav1.ListOptions{LabelSelector: v1alpha1.LabelManagedBy + "=" + registration.FieldManager}, metav1.DeleteOptions{}
	if u.o.dryRun {
		options.DryRun = []string{metav1.DryRunAll}
	}
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

// ownedBy are the cluster-scoped objects of a registration.
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

func (u *unregistration) removeFromHub(ctx context.Context) error {
	// First, so that the cluster does not come back by it.
	record, err := u.hub.deleteInvitation(ctx, u.app.hub.namespace, u.name, u.o.dryRun)
	if err != nil {
		return err
	}
	if record != nil {
		verb := "removed"
		if u.o.dryRun {
			verb = "would be removed"
		}
		if err := u.step(ctx, "invitation", "%s", verb); err != nil {
			return err
		}
	}
	if record != nil && u.registered == nil { // it may have been registered since
		if err := u.find(ctx); err != nil {
			return err
		}
	}
	if u.registered == nil {
		return u.step(ctx, "secret", "not found on the hub")
	}
	options := metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &u.registered.UID}}
	if u.o.dryRun {
		options.DryRun = []string{metav1.DryRunAll}
	}
	err = u.hub.kube.CoreV1().Secrets(u.registered.Namespace).Delete(ctx, u.name, options)
	if err != nil && !apierrors.IsNotFound(err) {
		return u.hub.explain(err)
	}
	if u.o.dryRun {
		return u.step(ctx, "secret", "%s/%s on the hub would be deleted", u.registered.Namespace, u.name)
	}
	return u.step(ctx, "secret", "%s/%s on the hub deleted", u.registered.Namespace, u.name)
}
