// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/internal/untrusted"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

func (a *app) statusCommand() *cobra.Command {
	var o clusterOptions
	cmd := &cobra.Command{
		Use:   "status NAME",
		Short: "Show the state of a cluster: route, conditions, agent, expiry dates",
		Long: `status shows one cluster: the route to it, whether it answers now, its conditions, its agent, and when the
gateway's credential and the agent's certificate expire. For a cluster that is invited but not registered,
it shows the state of the invitation.`,
		Example: `  agent-bootstrap status edge-1
  agent-bootstrap status edge-1 -o yaml`,
		Args: oneName,
		RunE: func(cmd *cobra.Command, args []string) error { return a.status(cmd.Context(), args[0], o) },
	}
	o.addFlags(cmd.Flags(), ", to read the state of its agent. Default: read it through the gateway")
	a.addOutput(cmd.Flags(), "the ClusterGateway")
	return cmd
}

func (a *app) status(ctx context.Context, name string, o clusterOptions) error {
	if err := errors.Join(registration.ValidateName(name), a.checkOutput()); err != nil {
		return err
	}
	hub, err := a.connectHub(ctx)
	if err != nil {
		return err
	}
	if err := a.requireGateway(ctx, hub); err != nil {
		return err
	}
	c, err := hub.clusterGateway(ctx, name)
	switch {
	case apierrors.IsNotFound(err):
		return a.invitedStatus(ctx, hub, name)
	case apierrors.IsForbidden(err) && a.output == "":
		return a.limitedStatus(ctx, hub, name, o, err)
	case err != nil:
		return hub.explain(err)
	case a.output != "":
		c.TypeMeta = metav1.TypeMeta{APIVersion: v1alpha1.SchemeGroupVersion.String(), Kind: v1alpha1.KindName}
		return a.print(c)
	}
	return a.printStatus(ctx, hub, c, o)
}

// clusterGateway reads a ClusterGateway from the hub.
func (c *clusterClient) clusterGateway(ctx context.Context, name string) (*v1alpha1.ClusterGateway, error) {
	o, err := c.dyn.Resource(v1alpha1.SchemeGroupVersion.WithResource(v1alpha1.ResourceName)).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	gateway := &v1alpha1.ClusterGateway{}
	return gateway, fromUnstructured(o, gateway)
}

func fromUnstructured(o *unstructured.Unstructured, into any) error {
	return runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, into)
}

// limitedStatus shows what a caller can see who may use the cluster, but not read its
// ClusterGateway. forbidden is the error that the caller got.
func (a *app) limitedStatus(ctx context.Context, hub *clusterClient, name string, o clusterOptions, forbidden error) error {
	if _, err := hub.reach(ctx, name); apierrors.IsForbidden(err) && causeOf(err) == "" {
		return hub.explain(forbidden)
	}
	c := &v1alpha1.ClusterGateway{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if err := a.printStatus(ctx, hub, c, o); err != nil {
		return err
	}
	a.say("Route and conditions are not shown, because your account may not read the ClusterGateway: %v", forbidden)
	return nil
}

// invitedStatus shows the invitation of a cluster that is not registered.
func (a *app) invitedStatus(ctx context.Context, hub *clusterClient, name string) error {
	record, err := hub.readInvitation(ctx, a.hub.namespace, name)
	if err != nil || record == nil || a.output != "" {
		return errors.Join(notRegistered(name), err)
	}
	table := statusTable{tabwriter.NewWriter(a.Out, 0, 8, 2, ' ', 0)}
	table.row("Name", "%s", name)
	table.row("Ready", "not registered yet")
	table.row("Invitation", "%s", a.named(a.invitationText(record)))
	return table.Flush()
}

// statusTable has a key and a value in each row.
type statusTable struct{ *tabwriter.Writer }

func (t statusTable) row(key, format string, args ...any) {
	fmt.Fprintf(t, "%s:\t%s\n", key, untrusted.Text(fmt.Sprintf(format, args...)))
}

func (a *app) printStatus(ctx context.Context, hub *clusterClient, c *v1alpha1.ClusterGateway, o clusterOptions) error {
	table := statusTable{tabwriter.NewWriter(a.Out, 0, 8, 2, ' ', 0)}
	table.row("Name", "%s", c.Name)
	table.row("Route", "%s", cmp.Or(c.Status.Route, "unknown"))
	if e := c.Spec.Access.Endpoint; e != nil && e.Const != nil {
		table.row("Endpoint", "%s", e.Const.Address)
	}
	table.row("Ready", "%s", readyText(c))
	if version, err := hub.reach(ctx, c.Name); err == nil {
		table.row("Answers now", "yes, %s", version)
	} else {
		table.row("Answers now", "no: %v", err)
	}
	if t := c.Status.CredentialExpirationTime; t != nil {
		table.row("Credential", "%s", a.expiry(t.Time))
	}
	if c.Status.Route != routeDirect {
		a.printAgent(ctx, hub, c.Name, o, table)
	}
	for _, condition := range c.Status.Conditions {
		table.row("Condition "+condition.Type, "%s", a.named(strings.TrimSpace(string(condition.Status)+" "+condition.Reason+" "+condition.Message)))
	}
	return table.Flush()
}

// expiry says when something expires, or that it has expired.
func (a *app) expiry(t time.Time) string {
	if !a.Now().Before(t) {
		return fmt.Sprintf("expired at %s", day(t))
	}
	return fmt.Sprintf("expires %s (%s)", a.until(t), day(t))
}

// printAgent shows the agent as the cluster describes it.
func (a *app) printAgent(ctx context.Context, hub *clusterClient, name string, o clusterOptions, table statusTable) {
	var target *clusterClient
	var err error
	if o.kubeconfig != "" {
		target, err = a.connectCluster(ctx, name, o)
	} else {
		target, err = throughGateway(hub, name)
	}
	if err != nil {
		table.row("Agent", "unknown: %v", err)
		return
	}
	deployment, err := target.kube.AppsV1().Deployments(registration.AgentNamespace).Get(ctx, registration.AgentName, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		table.row("Agent", "no Pods in the cluster: either the agent runs as a process, or there is none")
	case err != nil:
		table.row("Agent", "unknown: %v", err)
	default:
		table.row("Agent", "%d of %d Pods ready", deployment.Status.ReadyReplicas, deployment.Status.Replicas)
	}
	pair, err := readAgentSecret(ctx, target)
	if err != nil || pair == nil {
		return
	}
	cert, err := pair.Verify(nil, name, a.Now())
	if err != nil {
		table.row("Certificate", "%v", err)
		return
	}
	table.row("Certificate", "%s", a.expiry(cert.NotAfter))
}
