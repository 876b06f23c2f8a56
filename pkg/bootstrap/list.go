// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"cmp"
	"context"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/internal/untrusted"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

func (a *app) listCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the registered clusters and their state",
		Long: `list shows the registered clusters: the route to each one, whether the gateway can reach it, its Kubernetes
version, and when the gateway's credential expires. If you may read them, it also shows the invitations
that no cluster has used yet.`,
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
	if err := a.printClusters(list.Items); err != nil {
		return err
	}
	return a.printInvitations(ctx, hub)
}

// newTable returns a writer that aligns columns. The caller flushes it.
func (a *app) newTable() *tabwriter.Writer { return tabwriter.NewWriter(a.Out, 0, 8, 3, ' ', 0) }

func (a *app) printClusters(items []unstructured.Unstructured) error {
	if len(items) == 0 {
		a.say("No clusters are registered. To register one: agent-bootstrap register NAME --cluster-kubeconfig FILE")
		return nil
	}
	table := a.newTable()
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
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", c.Name, orDash(c.Status.Route), readyText(c), orDash(untrusted.Text(c.Status.Version)), expires,
			duration.HumanDuration(a.Now().Sub(c.CreationTimestamp.Time)))
	}
	return table.Flush()
}

// printInvitations shows the invitations that have not led to a cluster. It shows nothing to a
// caller who may not read them.
func (a *app) printInvitations(ctx context.Context, hub *clusterClient) error {
	all, err := hub.invitations(ctx, a.hub.namespace)
	if apierrors.IsForbidden(err) {
		return nil
	}
	if err != nil {
		return err
	}
	table := a.newTable()
	header := "\nINVITATION\tACCESS\tSTATE"
	for _, i := range all {
		if i.State == registration.InvitationDone {
			continue
		}
		if header != "" {
			fmt.Fprintln(table, header)
			header = ""
		}
		fmt.Fprintf(table, "%s\t%s\t%s\n", i.Name, orDash(i.Access), a.named(a.invitationText(i)))
	}
	return table.Flush()
}

func orDash(s string) string { return cmp.Or(s, "-") }

// until says when something expires, relative to now.
func (a *app) until(t time.Time) string {
	if left := t.Sub(a.Now()); left > 0 {
		return "in " + duration.HumanDuration(left)
	}
	return "expired"
}

// readyText is the condition Ready, with the reason if it is not true.
func readyText(c *v1alpha1.ClusterGateway) string {
	ready := meta.FindStatusCondition(c.Status.Conditions, v1alpha1.ConditionReady)
	switch {
	case ready == nil:
		return string(metav1.ConditionUnknown)
	case ready.Status == metav1.ConditionFalse:
		return "False (" + ready.Reason + ")"
	default:
		return string(ready.Status)
	}
}
