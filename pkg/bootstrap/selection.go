// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

// selection are the flags and arguments that select several clusters.
type selection struct {
	names    []string
	selector string
	all      bool
}

func (s *selection) addSelector(fs *pflag.FlagSet) {
	fs.StringVarP(&s.selector, "selector", "l", s.selector, "Only clusters with these labels, such as env=prod. The labels of a cluster are those of its Secret on the hub.")
}

func (s *selection) addFlags(fs *pflag.FlagSet) {
	s.addSelector(fs)
	fs.BoolVar(&s.all, "all", s.all, "All registered clusters.")
}

// oneNameOrFlags requires the name of one cluster, or flags that select several.
func (s *selection) oneNameOrFlags(cmd *cobra.Command, args []string) error {
	switch flags := s.all || s.selector != ""; {
	case !flags && len(args) == 0:
		return fmt.Errorf("missing the cluster: %s NAME. For several clusters, use --selector LABELS or --all", cmd.CommandPath())
	case !flags:
		return oneName(cmd, args)
	case len(args) > 0:
		return errBothSelections
	}
	return nil
}

var errBothSelections = errors.New("names of clusters cannot be used with --selector or --all")

// labels returns the selector of -l. Without that flag, it selects everything.
func (s *selection) labels() (labels.Selector, error) {
	selector, err := labels.Parse(s.selector)
	if err != nil {
		return nil, fmt.Errorf("invalid --selector %q: %w", s.selector, err)
	}
	return selector, nil
}

// validate requires names, or flags that select clusters. A command for several clusters never
// takes all of them by default.
func (s *selection) validate() error {
	_, err := s.labels()
	errs := []error{err}
	for _, name := range s.names {
		errs = append(errs, registration.ValidateName(name))
	}
	switch flags := s.all || s.selector != ""; {
	case len(s.names) > 0 && flags:
		errs = append(errs, errBothSelections)
	case len(s.names) == 0 && !flags:
		errs = append(errs, errors.New("no clusters are selected: use their names, --selector LABELS or --all"))
	}
	return errors.Join(errs...)
}

// selected returns the names of the selected clusters, in order.
func (a *app) selected(ctx context.Context, hub *clusterClient, s *selection) ([]string, error) {
	var names []string
	if len(s.names) > 0 {
		names = slices.Clone(s.names)
		slices.Sort(names)
		names = slices.Compact(names)
		for _, name := range names {
			if err := a.checkExists(ctx, hub, name); err != nil {
				return nil, err
			}
		}
		return names, nil
	}
	clusters, err := hub.clusterGateways(ctx, s.selector)
	if err != nil {
		return nil, err
	}
	if len(clusters) == 0 {
		return nil, errors.New("no registered cluster is selected. To list the clusters with their labels: " + defaultProgram + " list -o wide")
	}
	for i := range clusters {
		names = append(names, clusters[i].Name)
	}
	return names, nil
}

// clusterGateways reads the ClusterGateways that a selector selects, sorted by name.
func (c *clusterClient) clusterGateways(ctx context.Context, selector string) ([]v1alpha1.ClusterGateway, error) {
	list, err := c.dyn.Resource(v1alpha1.SchemeGroupVersion.WithResource(v1alpha1.ResourceName)).List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return nil, c.explain(err)
	}
	clusters := make([]v1alpha1.ClusterGateway, len(list.Items))
	for i := range list.Items {
		if err := fromUnstructured(&list.Items[i], &clusters[i]); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(clusters, func(a, b v1alpha1.ClusterGateway) int { return cmp.Compare(a.Name, b.Name) })
	return clusters, nil
}
