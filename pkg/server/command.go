// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	cliflag "k8s.io/component-base/cli/flag"
	logsapi "k8s.io/component-base/logs/api/v1"
	"k8s.io/component-base/term"

	"k8s.io/klog/v2"

	"github.com/oam-dev/cluster-gateway/pkg/internal/buildversion"
	"github.com/oam-dev/cluster-gateway/pkg/internal/memory"
)

const longHelp = `The gateway gives access to many clusters through one hub cluster.

Each Secret in the hub's --secret-namespace with the label cluster.core.oam.dev/cluster-credential-type describes one cluster.
The gateway serves that cluster as a ClusterGateway object (cluster.core.oam.dev/v1alpha1). It sends requests for

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

  # With a konnectivity-server that you run yourself
  gateway --kubeconfig hub.kubeconfig --tunnel-mode=external --konnectivity-server=unix:///run/konnectivity/server.sock`

// NewCommand returns the command of the gateway, which runs until its context ends. configure can
// change values that have no flag.
func NewCommand(configure ...func(*Config)) *cobra.Command {
	o := NewOptions()
	cmd := &cobra.Command{
		Use:     "gateway",
		Short:   "Access to many clusters, directly and through Konnectivity tunnels",
		Long:    longHelp,
		Example: example,
		Version: buildversion.String(),
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return flagError(nil, fmt.Errorf("invalid arguments %q: the gateway takes only flags", args))
			}
			return nil
		},
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			clamped := o.clampVerbosity()
			if err := o.validateLogs(); err != nil {
				return flagError(nil, err)
			}
			if err := logsapi.ValidateAndApply(o.Logs, nil); err != nil {
				return err
			}
			if clamped {
				klog.InfoS("Lowered the log verbosity, because above the limit client-go logs whole requests and responses with credentials", "limit", maxVerbosity)
			}
			logTracingErrors()
			klog.InfoS("Cluster Gateway", "version", buildversion.String())
			s, err := newServer(cmd.Context(), o, configure)
			if err != nil {
				return err
			}
			memory.CollectBefore(memory.ProcessLimit())
			return s.Run(cmd.Context())
		},
	}
	cmd.SetFlagErrorFunc(flagError)
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

// flagError adds to an error about a flag what to do.
func flagError(_ *cobra.Command, err error) error {
	return fmt.Errorf("%w\nTo see the flags: gateway --help", err)
}

// onePerLine returns an error whose text has a line for each error in an aggregate.
func onePerLine(err error) error {
	var all utilerrors.Aggregate
	if errors.As(err, &all) {
		return errors.Join(utilerrors.Flatten(all).Errors()...)
	}
	return err
}

func newServer(ctx context.Context, o *Options, configure []func(*Config)) (*Server, error) {
	config, err := o.Config()
	if err != nil {
		return nil, flagError(nil, onePerLine(err))
	}
	for _, f := range configure {
		f(config)
	}
	return config.Complete().New(ctx)
}
