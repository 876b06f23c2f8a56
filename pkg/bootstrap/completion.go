// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
)

// completionTimeout bounds how long the hub may take to answer while the user waits.
const completionTimeout = 5 * time.Second

// completionFunc returns the values that can follow. If the hub does not answer, there are none.
type completionFunc = func(cmd *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective)

// addCompletions makes shells complete the names of clusters, and the values of flags.
func (a *app) addCompletions(root *cobra.Command) {
	names := a.fromHub(clusterNames)
	// How many arguments before the cluster's name, and how many names.
	for command, at := range map[string]struct{ first, count int }{
		"unregister": {0, 1}, "rotate": {0, 1}, "status": {0, 1}, "doctor": {0, 1}, "kubeconfig": {0, 1}, "export": {0, 1}, "with": {0, 1}, "can-i": {1, 1},
		"list": {0, 1 << 10}, "each": {0, 1 << 10},
	} {
		for _, cmd := range root.Commands() {
			if cmd.Name() == command {
				cmd.ValidArgsFunction = namesAt(at.first, at.count, names)
			}
		}
	}
	flags := map[string]completionFunc{
		"context":         a.contexts(func(*cobra.Command) string { return a.hub.kubeconfig }),
		"cluster-context": a.contexts(func(cmd *cobra.Command) string { return cmd.Flag("cluster-kubeconfig").Value.String() }),
		"access":          a.fromHub(clusterRoles),
		"endpoint":        nil, // of kubeconfig, not of register
		"format":          cobra.FixedCompletions([]string{exportKubeconfig, exportArgoCD, exportFlux, exportHeadlamp, exportProfile}, cobra.ShellCompDirectiveNoFileComp),
	}
	for _, cmd := range append(root.Commands(), root) {
		for name, complete := range flags {
			flag := cmd.LocalFlags().Lookup(name)
			if flag == nil {
				continue
			}
			if name == "endpoint" && flag.DefValue == endpointHub {
				complete = cobra.FixedCompletions([]string{endpointHub, endpointGateway}, cobra.ShellCompDirectiveNoFileComp)
			}
			if complete != nil {
				_ = cmd.RegisterFlagCompletionFunc(name, complete) // fails for an unknown flag only
			}
		}
	}
}

// namesAt completes names of clusters at some positions. A name that is there is not offered again.
// What follows is completed by the shell: after --, it is a command.
func namesAt(first, count int, names completionFunc) completionFunc {
	return func(cmd *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
		switch {
		case len(args) < first:
			return nil, cobra.ShellCompDirectiveNoFileComp
		case len(args) >= first+count:
			return nil, cobra.ShellCompDirectiveDefault
		}
		all, directive := names(cmd, args, toComplete)
		return slices.DeleteFunc(all, func(name string) bool { return slices.Contains(args, name) }), directive
	}
}

// fromHub completes with what read reads from the hub.
func (a *app) fromHub(read func(context.Context, *clusterClient) ([]string, error)) completionFunc {
	return func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
		defer cancel()
		config, raw, err := loadKubeconfig("--kubeconfig", a.hub.kubeconfig, a.hub.context)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		if config.ExecProvider != nil {
			config.ExecProvider.StdinUnavailable = true // a plugin must not ask in the middle of a line
		}
		hub, err := newClusterClient("the hub", "--kubeconfig", config, raw)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		values, err := read(ctx, hub)
		if err != nil {
			cobra.CompDebugln(err.Error(), false)
		}
		return values, cobra.ShellCompDirectiveNoFileComp
	}
}

func clusterNames(ctx context.Context, hub *clusterClient) ([]string, error) {
	clusters, err := hub.clusterGateways(ctx, "")
	names := make([]string, len(clusters))
	for i := range clusters {
		names[i] = clusters[i].Name
	}
	return names, err
}

// clusterRoles returns the ClusterRoles of the hub. Those of a cluster can differ, but the cluster
// may not be reachable yet.
func clusterRoles(ctx context.Context, hub *clusterClient) ([]string, error) {
	list, err := hub.kube.RbacV1().ClusterRoles().List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return []string{"admin", "view"}, err
	}
	names := []string{"admin", "view"} // the values of --access that are not the name of a ClusterRole
	for i := range list.Items {
		names = append(names, list.Items[i].Name)
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// contexts completes the names of the contexts in a kubeconfig.
func (a *app) contexts(path func(*cobra.Command) string) completionFunc {
	return func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		rules := clientcmd.NewDefaultClientConfigLoadingRules()
		rules.ExplicitPath = path(cmd)
		config, err := rules.Load()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return slices.Sorted(maps.Keys(config.Contexts)), cobra.ShellCompDirectiveNoFileComp
	}
}
