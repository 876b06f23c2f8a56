// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	cliflag "k8s.io/component-base/cli/flag"
	logsapi "k8s.io/component-base/logs/api/v1"
	"k8s.io/component-base/term"
	"k8s.io/component-base/version"
	"k8s.io/klog/v2"

	"github.com/oam-dev/cluster-gateway/pkg/internal/memory"
)

const longHelp = `The gateway gives access to many clusters through one hub cluster.

Each Secret in the hub's --secret-namespace with the label cluster.core.oam.dev/cluster-credential-type is a cluster, and the
gateway serves it as a ClusterGateway (cluster.core.oam.dev/v1alpha1). It sends requests for

  /apis/cluster.core.oam.dev/v1alpha1/clustergateways/NAME/proxy/PATH

to PATH on that cluster's API server, directly or through a Konnectivity tunnel.

Requests come through the hub's aggregation layer (an APIService for v1alpha1.cluster.core.oam.dev) or directly to the gateway's
own HTTPS endpoint. In both cases the hub authenticates and authorizes them.`

const example = `  # Outside a Pod, with the embedded tunnel server
  gateway --kubeconfig hub.kubeconfig --tunnel-advertise-address=tunnel.example.com:8132

  # With your own certificates
  gateway --kubeconfig hub.kubeconfig \
    --tls-cert-file serving.crt --tls-private-key-file serving.key \
    --tunnel-cert-file tunnel.crt --tunnel-private-key-file tunnel.key --tunnel-client-ca-file agents-ca.crt

  # With a stock konnectivity-server
  gateway --kubeconfig hub.kubeconfig --tunnel-mode=external --konnectivity-server=unix:///run/konnectivity/server.sock`

// NewCommand returns the command of the gateway, which runs until its context ends. configure can
// change values that have no flag.
func NewCommand(configure ...func(*Config)) *cobra.Command {
	o := NewOptions()
	cmd := &cobra.Command{
		Use:           "gateway",
		Short:         "Access to many clusters, directly and through Konnectivity tunnels",
		Long:          longHelp,
		Example:       example,
		Version:       version.Get().GitVersion,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			clamped := o.clampVerbosity()
			if err := logsapi.ValidateAndApply(o.Logs, nil); err != nil {
				return err
			}
			if clamped {
				klog.InfoS("Lowered the log verbosity, because above the limit client-go logs whole requests and responses with credentials", "limit", maxVerbosity)
			}
			klog.InfoS("Cluster Gateway", "version", version.Get().GitVersion)
			s, err := newServer(cmd.Context(), o, configure)
			if err != nil {
				return fmt.Errorf("%w\nRun 'gateway --help' for a list of the flags", err)
			}
			memory.CollectBefore(memory.ProcessLimit())
			return s.Run(cmd.Context())
		},
	}
	groups := o.Flags()
	groups.FlagSet("misc").Bool("version", false, "Print the version.") // cobra does
	for _, set := range groups.FlagSets {
		cmd.Flags().AddFlagSet(set)
	}
	width, _, err := term.TerminalSize(cmd.OutOrStdout())
	if err != nil { // not a terminal
		width = 0
	}
	cliflag.SetUsageAndHelpFunc(cmd, groups, width)
	// The help function omits the examples.
	help := cmd.HelpFunc()
	cmd.SetHelpFunc(func(cmd *cobra.Command, args []string) {
		help(cmd, args)
		fmt.Fprintf(cmd.OutOrStdout(), "\nExamples:\n\n%s\n", cmd.Example)
	})
	return cmd
}

func newServer(ctx context.Context, o *Options, configure []func(*Config)) (*Server, error) {
	config, err := o.Config()
	if err != nil {
		return nil, err
	}
	for _, f := range configure {
		f(config)
	}
	return config.Complete().New(ctx)
}
