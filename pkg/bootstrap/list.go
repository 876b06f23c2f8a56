// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/internal/untrusted"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

// Formats of -o of list, besides yaml and json.
const (
	formatWide = "wide"
	formatName = "name"
)

func (a *app) listCommand() *cobra.Command {
	var s selection
	cmd := &cobra.Command{
		Use:     "list [NAMES...]",
		Aliases: []string{"get", "ls"},
		Short:   "List the registered clusters and their state",
		Long: `list shows the registered clusters: the route to each one, whether the gateway can reach it, its Kubernetes
version, and when the gateway's credential expires. If you may read them, it also shows the invitations
that no cluster has used yet.`,
		Example: `  agent-bootstrap list
  agent-bootstrap list -l env=prod -o wide
  agent-bootstrap list -o json

  # Run a program for each cluster.
  for c in $(agent-bootstrap list -o name); do ...; done`,
		RunE: func(cmd *cobra.Command, args []string) error {
			s.names = args
			return a.list(cmd.Context(), &s)
		},
	}
	s.addSelector(cmd.Flags())
	cmd.Flags().StringVarP(&a.output, "output", "o", a.output, "Format: wide for more columns, name for names only, yaml or json for the ClusterGateway objects of the hub.")
	return cmd
}

func (a *app) list(ctx context.Context, s *selection) error {
	if err := a.checkList(s); err != nil {
		return err
	}
	hub, err := a.connectHub(ctx)
	if err != nil {
		return err
	}
	if err := a.requireGateway(ctx, hub); err != nil {
		return err
	}
	list, err := a.readList(ctx, hub, s)
	if err != nil {
		return err
	}
	switch a.output {
	case "yaml", "json":
		return a.print(list.UnstructuredContent())
	case formatName:
		for i := range list.Items {
			fmt.Fprintln(a.Out, list.Items[i].GetName())
		}
		return nil
	}
	if err := a.printClusters(list.Items, s); err != nil || len(s.names) > 0 || s.selector != "" {
		return err
	}
	return a.printInvitations(ctx, hub)
}

func (a *app) checkList(s *selection) error {
	_, err := s.labels()
	errs := []error{err}
	switch a.output {
	case "", "yaml", "json", formatWide, formatName:
	default:
		errs = append(errs, fmt.Errorf("invalid --output %q: must be wide, name, yaml or json", a.output))
	}
	for _, name := range s.names {
		errs = append(errs, registration.ValidateName(name))
	}
	if len(s.names) > 0 && s.selector != "" {
		errs = append(errs, errors.New("names of clusters cannot be used with --selector"))
	}
	return errors.Join(errs...)
}

// readList reads the selected ClusterGateways. Without names and labels, these are all.
func (a *app) readList(ctx context.Context, hub *clusterClient, s *selection) (*unstructured.UnstructuredList, error) {
	resource := hub.dyn.Resource(v1alpha1.SchemeGroupVersion.WithResource(v1alpha1.ResourceName))
	if len(s.names) == 0 {
		list, err := resource.List(ctx, metav1.ListOptions{LabelSelector: s.selector})
		return list, hub.explain(err)
	}
	list := &unstructured.UnstructuredList{}
	list.SetAPIVersion(v1alpha1.SchemeGroupVersion.String())
	list.SetKind(v1alpha1.KindName + "List")
	for _, name := range s.names {
		item, err := resource.Get(ctx, name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			return nil, notRegistered(name)
		case err != nil:
			return nil, hub.explain(err)
		}
		list.Items = append(list.Items, *item)
	}
	return list, nil
}

// newTable returns a writer that aligns columns. The caller flushes it.
func (a *app) newTable() *tabwriter.Writer { return tabwriter.NewWriter(a.Out, 0, 8, 3, ' ', 0) }

func (a *app) printClusters(items []unstructured.Unstructured, s *selection) error {
	if len(items) == 0 && s.selector != "" {
		a.say("No registered cluster has the labels %s.", s.selector)
		return nil
	}
	if len(items) == 0 {
		a.say("No clusters are registered. To register one: agent-bootstrap register NAME --cluster-kubeconfig FILE")
		return nil
	}
	table := a.newTable()
	header := "NAME\tROUTE\tREADY\tVERSION\tCREDENTIAL EXPIRES\tAGE"
	if a.output == formatWide {
		header += "\tACCESS\tENDPOINT\tLABELS"
	}
	fmt.Fprintln(table, header)
	for i := range items {
		c := &v1alpha1.ClusterGateway{}
		if err := fromUnstructured(&items[i], c); err != nil {
			return err
		}
		expires := "-"
		if t := c.Status.CredentialExpirationTime; t != nil {
			expires = a.until(t.Time)
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s", c.Name, orDash(c.Status.Route), readyText(c), orDash(untrusted.Text(c.Status.Version)), expires,
			duration.HumanDuration(a.Now().Sub(c.CreationTimestamp.Time)))
		if a.output == formatWide {
			fmt.Fprintf(table, "\t%s\t%s\t%s", orDash(untrusted.Text(c.Annotations[v1alpha1.AnnotationAccess])), orDash(untrusted.Text(endpointOf(c))), orDash(labels.FormatLabels(c.Labels)))
		}
		fmt.Fprintln(table)
	}
	return table.Flush()
}

func endpointOf(c *v1alpha1.ClusterGateway) string {
	if e := c.Spec.Access.Endpoint; e != nil && e.Const != nil {
		return e.Const.Address
	}
	return ""
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
