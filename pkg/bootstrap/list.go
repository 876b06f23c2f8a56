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
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

func fromUnstructured(o *unstructured.Unstructured, into any) error {
	return runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, into)
}

// clusterGateway reads one from the gateway.
func (s *clusterClient) clusterGateway(ctx context.Context, name string) (*v1alpha1.ClusterGateway, error) {
	o, err := s.dyn.Resource(v1alpha1.SchemeGroupVersion.WithResource(v1alpha1.ResourceName)).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	c := &v1alpha1.ClusterGateway{}
	return c, fromUnstructured(o, c)
}

func (a *app) listCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the clusters that are registered, and how they are",
		Example: "  agent-bootstrap list\n  agent-bootstrap list -o json",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.list(cmd.Context()) },
	}
	a.addOutput(cmd.Flags(), "the ClusterGateways")
	return cmd
}

func (a *app) list(ctx context.Context) error {
	if err := a.checkOutput(); err != nil {
		return err
	}
	hub, err := a.connectHub(ctx)
	if err != nil {
		return err
	}
	if err := a.requireGateway(ctx, hub); err != nil {
		return err
	}
	list, err := hub.dyn.Resource(v1alpha1.SchemeGroupVersion.WithResource(v1alpha1.ResourceName)).List(ctx, metav1.ListOptions{})
	if err != nil {
		return hub.explain(err)
	}
	if a.output != "" {
		return a.print(list.UnstructuredContent())
	}
	if err := a.listClusters(list.Items); err != nil {
		return err
	}
	return a.listInvitations(ctx, hub)
}

func (a *app) listClusters(items []unstructured.Unstructured) error {
	if len(items) == 0 {
		a.say("No cluster is registered: agent-bootstrap register NAME --cluster-kubeconfig FILE")
		return nil
	}
	table := tabwriter.NewWriter(a.Out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(table, "NAME\tROUTE\tREADY\tVERSION\tCREDENTIAL EXPIRES\tAGE")
	for i := range items {
		c := &v1alpha1.ClusterGateway{}
		if err := fromUnstructured(&items[i], c); err != nil {
			return err
		}
		expires := "-"
		if t := c.Status.CredentialExpirationTime; t != nil {
			expires = a.until(t.Time)
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", c.Name, c.Status.Route, readyText(c), orDash(c.Status.Version), expires,
			duration.HumanDuration(a.Now().Sub(c.CreationTimestamp.Time)))
	}
	return table.Flush()
}

// listInvitations shows those that have not led to a cluster. Who may not see them sees the clusters alone.
func (a *app) listInvitations(ctx context.Context, hub *clusterClient) error {
	all, err := hub.invitations(ctx, a.hub.namespace)
	if apierrors.IsForbidden(err) {
		return nil
	}
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(a.Out, 0, 8, 3, ' ', 0)
	header := "\nINVITATION\tACCESS\tSTATE"
	for _, i := range all {
		if i.State == registration.InvitationDone {
			continue
		}
		if header != "" {
			fmt.Fprintln(table, header)
			header = ""
		}
		fmt.Fprintf(table, "%s\t%s\t%s\n", i.Name, orDash(i.Access), a.invitationText(i))
	}
	return table.Flush()
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// until says when something ends, seen from now.
func (a *app) until(t time.Time) string {
	if left := t.Sub(a.Now()); left > 0 {
		return "in " + duration.HumanDuration(left)
	}
	return "expired"
}

func readyText(c *v1alpha1.ClusterGateway) string {
	ready := meta.FindStatusCondition(c.Status.Conditions, v1alpha1.ConditionReady)
	switch {
	case ready == nil:
		return "Unknown"
	case ready.Status == metav1.ConditionFalse:
		return "False (" + ready.Reason + ")"
	default:
		return string(ready.Status)
	}
}

func (a *app) statusCommand() *cobra.Command {
	var target clusterOptions
	cmd := &cobra.Command{
		Use:   "status NAME",
		Short: "Show a cluster: route, health, conditions, agents, what expires when",
		Example: `  agent-bootstrap status edge-1
  agent-bootstrap status edge-1 -o yaml`,
		Args: oneName,
		RunE: func(cmd *cobra.Command, args []string) error { return a.status(cmd.Context(), args[0], target) },
	}
	target.addFlags(cmd.Flags(), ". Empty: it is asked about its agents through the gateway")
	a.addOutput(cmd.Flags(), "the ClusterGateway")
	return cmd
}

func (a *app) status(ctx context.Context, name string, o clusterOptions) error {
	if err := checkName(name); err != nil {
		return err
	}
	if err := a.checkOutput(); err != nil {
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
	if apierrors.IsNotFound(err) {
		return a.statusOfInvited(ctx, hub, name)
	}
	if apierrors.IsForbidden(err) && a.output == "" {
		return a.statusOfUsable(ctx, hub, name, o, err)
	}
	if err != nil {
		return hub.explain(err)
	}
	if a.output != "" {
		c.TypeMeta = metav1.TypeMeta{APIVersion: v1alpha1.SchemeGroupVersion.String(), Kind: v1alpha1.KindName}
		return a.print(c)
	}
	a.printStatus(ctx, hub, c, o)
	return nil
}

// statusOfUsable shows what can be seen of a cluster by who may use it, and not look at its ClusterGateway; forbidden is why not.
func (a *app) statusOfUsable(ctx context.Context, hub *clusterClient, name string, o clusterOptions, forbidden error) error {
	if _, err := hub.reach(ctx, name); apierrors.IsForbidden(err) && causeOf(err) == "" {
		return hub.explain(forbidden)
	}
	c := &v1alpha1.ClusterGateway{ObjectMeta: metav1.ObjectMeta{Name: name}}
	a.printStatus(ctx, hub, c, o)
	a.say("What the hub knows of it (route, health, conditions) is not shown: %v", forbidden)
	return nil
}

// statusOfInvited shows how far the invitation of a cluster has come that is not registered.
func (a *app) statusOfInvited(ctx context.Context, hub *clusterClient, name string) error {
	record, err := hub.readInvitation(ctx, a.hub.namespace, name)
	if err != nil || record == nil || a.output != "" {
		return errors.Join(fmt.Errorf("cluster %q is not registered: agent-bootstrap list shows what is", name), err)
	}
	fmt.Fprintf(a.Out, "Name:        %s\nReady:       not registered yet\nInvitation:  %s\n", name, a.invitationText(record))
	return nil
}

func (a *app) printStatus(ctx context.Context, hub *clusterClient, c *v1alpha1.ClusterGateway, o clusterOptions) {
	table := tabwriter.NewWriter(a.Out, 0, 8, 2, ' ', 0)
	row := func(key, format string, args ...any) {
		fmt.Fprintf(table, "%s:\t%s\n", key, fmt.Sprintf(format, args...))
	}
	row("Name", "%s", c.Name)
	row("Route", "%s", cmp.Or(c.Status.Route, "unknown"))
	if e := c.Spec.Access.Endpoint; e != nil && e.Const != nil {
		row("Endpoint", "%s", e.Const.Address)
	}
	row("Ready", "%s", readyText(c))
	if version, err := hub.reach(ctx, c.Name); err == nil {
		row("Answers now", "yes, %s", version)
	} else {
		row("Answers now", "no: %v", err)
	}
	if t := c.Status.CredentialExpirationTime; t != nil {
		row("Credential", "expires %s (%s)", a.until(t.Time), day(t.Time))
	}
	if c.Status.Route != routeDirect {
		a.printAgent(ctx, hub, c.Name, o, row)
	}
	for _, condition := range c.Status.Conditions {
		row("Condition "+condition.Type, "%s", strings.TrimSpace(string(condition.Status)+" "+condition.Reason+" "+condition.Message))
	}
	_ = table.Flush() // there is nowhere to say it
}

// printAgent shows what the cluster itself says of its agent.
func (a *app) printAgent(ctx context.Context, hub *clusterClient, name string, o clusterOptions, row func(key, format string, args ...any)) {
	var target *clusterClient
	var err error
	if o.kubeconfig != "" {
		target, err = a.connectCluster(ctx, name, o)
	} else {
		target, err = throughGateway(hub, name)
	}
	if err != nil {
		row("Agent", "unknown: %v", err)
		return
	}
	deployment, err := target.kube.AppsV1().Deployments(registration.AgentNamespace).Get(ctx, registration.AgentName, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		row("Agent", "none in the cluster as Pods; it runs as a process, or there is none")
	case err != nil:
		row("Agent", "unknown: %v", err)
	default:
		row("Agent", "%d of %d Pods ready", deployment.Status.ReadyReplicas, deployment.Status.Replicas)
	}
	pair, err := readAgentSecret(ctx, target)
	if err != nil || pair == nil {
		return
	}
	cert, err := checkAgentPair(pair.Certificate, pair.Key, nil, name, a.Now())
	if err != nil {
		row("Certificate", "%v", err)
		return
	}
	row("Certificate", "expires %s (%s)", a.until(cert.NotAfter), day(cert.NotAfter))
}
