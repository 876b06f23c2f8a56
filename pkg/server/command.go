// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"fmt"

	"github.com/spf13/cobra"
	cliflag "k8s.io/component-base/cli/flag"
	logsapi "k8s.io/component-base/logs/api/v1"
	"k8s.io/component-base/term"
	"k8s.io/component-base/version"
	"k8s.io/component-base/version/verflag"
	"k8s.io/klog/v2"
)

const longHelp = `The gateway serves ClusterGateways (cluster.core.oam.dev/v1alpha1): one for each Secret in the hub's
--secret-namespace with the label cluster.core.oam.dev/cluster-credential-type. What is sent to

  /apis/cluster.core.oam.dev/v1alpha1/clustergateways/NAME/proxy/PATH

is sent to PATH on that cluster's API server, directly or through a Konnectivity tunnel.

It serves the hub's aggregation layer (an APIService for v1alpha1.cluster.core.oam.dev), and clients on its own HTTPS endpoint;
who may do what is decided by the hub in both cases.`

const example = `  # Outside a Pod, with the embedded tunnel server:
  gateway --kubeconfig hub.kubeconfig --tunnel-advertise-address=tunnel.example.com:8132

  # With certificates of your own:
  gateway --kubeconfig hub.kubeconfig \
    --tls-cert-file serving.crt --tls-private-key-file serving.key \
    --tunnel-cert-file tunnel.crt --tunnel-private-key-file tunnel.key --tunnel-client-ca-file agents-ca.crt

  # With a stock konnectivity-server:
  gateway --kubeconfig hub.kubeconfig --tunnel-mode=external --konnectivity-server=unix:///run/konnectivity/server.sock`

// NewCommand returns the command of the gateway. Its context ends the gateway.
func NewCommand() *cobra.Command {
	o := NewOptions()
	cmd := &cobra.Command{
		Use:           "gateway",
		Short:         "kubectl to any cluster, directly and through a Konnectivity tunnel",
		Long:          longHelp,
		Example:       example,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			verflag.PrintAndExitIfRequested()
			clamped := o.clampVerbosity()
			if err := logsapi.ValidateAndApply(o.Logs, nil); err != nil {
				return err
			}
			if clamped {
				klog.InfoS("The verbosity is limited: above, client-go writes whole requests and responses to the log, credentials included", "limit", maxVerbosity)
			}
			s, err := New(cmd.Context(), o)
			if err != nil {
				return fmt.Errorf("%w\n(gateway --help lists the flags)", err)
			}
			klog.InfoS("Cluster Gateway", "version", version.Get().GitVersion)
			return s.Run(cmd.Context())
		},
	}
	groups := o.Flags()
	verflag.AddFlags(groups.FlagSet("misc"))
	for _, set := range groups.FlagSets {
		cmd.Flags().AddFlagSet(set)
	}
	width, _, err := term.TerminalSize(cmd.OutOrStdout())
	if err != nil { // not a terminal
		width = 0
	}
	cliflag.SetUsageAndHelpFunc(cmd, groups, width)
	// It leaves the examples out.
	help := cmd.HelpFunc()
	cmd.SetHelpFunc(func(cmd *cobra.Command, args []string) {
		help(cmd, args)
		fmt.Fprintf(cmd.OutOrStdout(), "\nExamples:\n\n%s\n", cmd.Example)
	})
	return cmd
}
