// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

// unreachableAfter is how long a cluster must not answer before it is treated as gone. An agent
// that is replaced, or a gateway that restarts, is back by then.
const unreachableAfter = 30 * time.Second

type unregisterOptions struct {
	cluster           clusterOptions
	keepAgent, dryRun bool
	wait              time.Duration
}

func (a *app) unregisterCommand() *cobra.Command {
	// The agent's Pods have a grace period of 75 s, and the namespace is deleted after them.
	o := &unregisterOptions{wait: 2 * time.Minute}
	cmd := &cobra.Command{
		Use:   "unregister NAME",
		Short: "Remove a cluster: its agent, the gateway's account there, and its Secret on the hub",
		Long: `unregister removes what register applied, on the hub and in the cluster. It reaches the cluster through
the gateway, or with --cluster-kubeconfig. With --cluster-kubeconfig, it also waits until everything is
removed, which can take 75 s, because the agent's Pods have that long to stop.

If the gateway reports for half a minute that it has no route to the cluster, the cluster is removed
from the hub only, and the command prints what is left in the cluster. If the cluster cannot be
reached for any other reason, nothing is removed.

A cluster that the gateway registered from a Secret of Cluster API is refused, because the gateway would
register it again. The error says what to do.`,
		Example: `  agent-bootstrap unregister edge-1

  # The gateway may not delete objects in the cluster (--access view): use the cluster's own kubeconfig.
  agent-bootstrap unregister edge-1 --cluster-kubeconfig edge-1.kubeconfig

  # Change nothing in the cluster.
  agent-bootstrap unregister edge-1 --keep-agent`,
		Args: oneName,
		RunE: func(cmd *cobra.Command, args []string) error {
			u := &unregisterRun{app: a, o: o, name: args[0]}
			return u.run(cmd.Context())
		},
	}
	fs := cmd.Flags()
	o.cluster.addFlags(fs, ". Default: reach the cluster through the gateway")
	fs.BoolVar(&o.keepAgent, "keep-agent", o.keepAgent, "Remove the cluster from the hub only, and leave everything in the cluster.")
	fs.BoolVar(&o.dryRun, "dry-run", o.dryRun, dryRunHelp)
	fs.DurationVar(&o.wait, "wait", o.wait, "With --cluster-kubeconfig: how long to wait until everything is removed. The agent's Pods have 75s to stop.")
	return cmd
}

// unregisterRun is one run of unregister.
type unregisterRun struct {
	*app
	o    *unregisterOptions
	name string
	hub  *clusterClient
	// secret is the cluster's Secret, or nil if there is none.
	secret *corev1.Secret
}

func (u *unregisterRun) run(ctx context.Context) (err error) {
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

// find reads the cluster's Secret, which may be deleted already.
func (u *unregisterRun) find(ctx context.Context) error {
	secret, err := u.hub.kube.CoreV1().Secrets(u.app.hub.namespace).Get(ctx, u.name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return u.hub.explain(err)
	case !cluster.IsCluster(secret):
		return fmt.Errorf("the Secret %s/%s on the hub is not a cluster, and was not changed", secret.Namespace, secret.Name)
	}
	u.secret = secret
	return u.checkClusterAPI(ctx)
}

// checkClusterAPI refuses to remove a cluster that the gateway would register again, from a
// kubeconfig of Cluster API that still exists.
func (u *unregisterRun) checkClusterAPI(ctx context.Context) error {
	if u.secret.Labels[v1alpha1.LabelManagedBy] != v1alpha1.ManagedByClusterAPI {
		return nil
	}
	source := u.secret.Annotations[v1alpha1.AnnotationClusterAPISecret]
	namespace, name, ok := strings.Cut(source, "/")
	if !ok {
		return nil // the gateway does not register it again either
	}
	_, err := u.hub.kube.CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil && !apierrors.IsForbidden(err):
		return u.hub.explain(err)
	}
	return fmt.Errorf(`the gateway registered cluster %[1]q from the Secret %[2]s of Cluster API, and would register it again. Nothing was changed. Do one of these:
- Delete the Cluster of Cluster API. The gateway then unregisters it.
- With --cluster-api-selector: remove a label that it requires from the Secret %[2]s. The gateway then unregisters the cluster.
- If the gateway does not follow the namespace %[3]s any more (--cluster-api-namespaces): kubectl -n %[4]s delete secret %[1]s`,
		u.name, source, namespace, u.secret.Namespace)
}

func (u *unregisterRun) removeFromCluster(ctx context.Context) error {
	if u.o.cluster.kubeconfig != "" {
		target, err := u.identifyCluster(ctx, u.name, u.o.cluster)
		if err != nil {
			return err
		}
		if err := checkSameCluster(u.secret, target); err != nil {
			return err
		}
		return u.deleteNamespace(ctx, target, true)
	}
	if u.secret == nil {
		return u.step(ctx, "cluster", "not registered, so it cannot be reached through the gateway. To remove what is left in it, set --cluster-kubeconfig")
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
		return u.step(ctx, "cluster", "cannot be reached (%v), so nothing was changed in it. If it comes back: kubectl delete namespace %s", gone, registration.AgentNamespace)
	}
	return u.deleteNamespace(ctx, target, false)
}

// reach asks the cluster for an answer through the gateway, for a while. gone is the gateway's
// answer that the cluster cannot be reached, if it gave no other answer in all that time. err is
// any other failure: a cluster that exists may have it as well.
func (u *unregisterRun) reach(ctx context.Context) (gone, err error) {
	waitCtx, cancel := context.WithTimeout(ctx, 2*unreachableAfter)
	defer cancel()
	began, reported := time.Now(), false
	var unreachableSince time.Time // zero while the gateway does not report it
	for {
		_, err := u.hub.reach(waitCtx, u.name)
		switch {
		case err == nil:
			return nil, nil
		case ctx.Err() != nil:
			return nil, u.hub.explain(ctx.Err())
		case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
			return nil, u.hub.explain(err)
		case !unreachable(err):
			unreachableSince = time.Time{}
			if time.Since(began) >= unreachableAfter {
				return nil, fmt.Errorf("it could not be determined within %s whether the cluster exists (%w), and nothing was changed. Try again, or set --cluster-kubeconfig, or --keep-agent to change nothing in the cluster",
					time.Since(began).Round(time.Second), err)
			}
		case unreachableSince.IsZero():
			unreachableSince = time.Now()
		case time.Since(unreachableSince) >= unreachableAfter:
			return err, nil
		}
		if !reported {
			u.say("  %-12s does not answer; retrying for %s: %v", "cluster", unreachableAfter, err)
			reported = true
		}
		_ = pause(waitCtx, time.Second) // if the time is over, the next request fails
	}
}

// unreachable is whether the gateway reports that it cannot reach the cluster.
func unreachable(err error) bool {
	switch causeOf(err) {
	case v1alpha1.CauseTunnel, v1alpha1.CauseAgent, v1alpha1.CauseEndpoint, v1alpha1.CauseTLS:
		return true
	default:
		return false
	}
}

func (u *unregisterRun) removeFromHub(ctx context.Context) error {
	// First, so that the cluster cannot register again with it.
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
	if record != nil && u.secret == nil { // it may have been registered since
		if err := u.find(ctx); err != nil {
			return err
		}
	}
	if u.secret == nil {
		return u.step(ctx, "secret", "not found on the hub")
	}
	options := metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &u.secret.UID}, DryRun: registration.DryRunOption(u.o.dryRun)}
	err = u.hub.kube.CoreV1().Secrets(u.secret.Namespace).Delete(ctx, u.name, options)
	if err != nil && !apierrors.IsNotFound(err) {
		return u.hub.explain(err)
	}
	if u.o.dryRun {
		return u.step(ctx, "secret", "%s/%s on the hub would be deleted", u.secret.Namespace, u.name)
	}
	return u.step(ctx, "secret", "%s/%s on the hub deleted", u.secret.Namespace, u.name)
}
