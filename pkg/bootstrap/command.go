// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/component-base/version"
	"sigs.k8s.io/yaml"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// Config is what the commands run with.
type Config struct {
	// Out is for what was asked for, ErrOut for what happens on the way. Nil means nobody reads it.
	Out, ErrOut io.Writer
	// Now is the clock; nil means the system's.
	Now func() time.Time
	// AfterStep is told of each step that is done, and ends the command with the error it returns. Nil means nobody is.
	AfterStep func(step string) error
}

// app is shared by the commands.
type app struct {
	Config
	hub hubOptions
	// output is -o: "", yaml or json.
	output string
}

// hubOptions say where the hub is.
type hubOptions struct {
	kubeconfig, context, namespace string
}

func (o *hubOptions) addFlags(fs *pflag.FlagSet) {
	fs.StringVar(&o.kubeconfig, "kubeconfig", o.kubeconfig, "Kubeconfig file of the hub. Empty: as kubectl does.")
	fs.StringVar(&o.context, "context", o.context, "Context of the hub in that file. Empty: the current one.")
	fs.StringVar(&o.namespace, "secret-namespace", o.namespace, "Namespace of the hub that the gateway reads its clusters in.")
}

// NewCommand returns agent-bootstrap. Its context ends what it does.
func NewCommand(config Config) *cobra.Command {
	if config.Out == nil {
		config.Out = io.Discard
	}
	if config.ErrOut == nil {
		config.ErrOut = io.Discard
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	a := &app{Config: config, hub: hubOptions{namespace: v1alpha1.DefaultNamespace}}
	cmd := &cobra.Command{
		Use:   "agent-bootstrap",
		Short: "Register clusters with a Cluster Gateway",
		Long: `agent-bootstrap registers clusters with a Cluster Gateway, those behind a firewall included, and finds out what is
wrong with one that cannot be reached. Every command can be repeated: it goes on where it was interrupted, and changes nothing that
is as it should be.`,
		Example: `  # A cluster behind a firewall: applies the agent there, and waits until it can be reached.
  agent-bootstrap register edge-1 --cluster-kubeconfig edge-1.kubeconfig

  # Only the hub is at hand: a file for whoever has the cluster's kubeconfig, and kubectl apply.
  agent-bootstrap invite edge-1 > invite.yaml

  # Use it, with your own credential for the hub.
  agent-bootstrap kubeconfig edge-1 --merge
  kubectl --context edge-1 get nodes

  # Why does it not answer?
  agent-bootstrap doctor edge-1`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version.Get().GitVersion,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.SetOut(a.Out)
	cmd.SetErr(a.ErrOut)
	a.hub.addFlags(cmd.PersistentFlags())
	cmd.AddCommand(a.registerCommand(), a.inviteCommand(), a.unregisterCommand(), a.listCommand(), a.statusCommand(), a.doctorCommand(), a.kubeconfigCommand(), a.rotateCommand())
	return cmd
}

// addOutput adds -o.
func (a *app) addOutput(fs *pflag.FlagSet, what string) {
	fs.StringVarP(&a.output, "output", "o", a.output, "Print "+what+" as yaml or json.")
}

func (a *app) checkOutput() error {
	if a.output != "" && a.output != "yaml" && a.output != "json" {
		return fmt.Errorf("-o must be yaml or json, and is %q", a.output)
	}
	return nil
}

// print writes documents as -o says.
func (a *app) print(documents ...any) error {
	for i, d := range documents {
		if a.output == "json" {
			encoder := json.NewEncoder(a.Out)
			encoder.SetEscapeHTML(false)
			encoder.SetIndent("", "  ")
			if err := encoder.Encode(d); err != nil {
				return err
			}
			continue
		}
		if i > 0 {
			fmt.Fprintln(a.Out, "---")
		}
		data, err := yaml.Marshal(d)
		if err != nil {
			return err
		}
		if _, err := a.Out.Write(data); err != nil {
			return err
		}
	}
	return nil
}

// say tells a person what happens.
func (a *app) say(format string, args ...any) { fmt.Fprintf(a.ErrOut, format+"\n", args...) }

// step says that a step is done, and tells AfterStep.
func (a *app) step(ctx context.Context, name, format string, args ...any) error {
	a.say("  %-12s %s", name, fmt.Sprintf(format, args...))
	if a.AfterStep != nil {
		if err := a.AfterStep(name); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return errors.New("interrupted; run the same command again to go on from here")
	}
	return nil
}

// oneName is the arguments of a command that takes the name of a cluster.
func oneName(cmd *cobra.Command, args []string) error {
	switch len(args) {
	case 0:
		return fmt.Errorf("%s needs the name of a cluster: %[1]s NAME", cmd.CommandPath())
	case 1:
		return nil
	default:
		return fmt.Errorf("%s takes the name of one cluster, and was given %d: %q", cmd.CommandPath(), len(args), args)
	}
}

// checkName refuses what cannot be the name of a cluster.
func checkName(name string) error {
	if faults := v1alpha1.ValidateClusterName(name); len(faults) > 0 {
		return fmt.Errorf("%q cannot be the name of a cluster: %s", name, faults[0])
	}
	return nil
}

// notRegistered is the error for a cluster that the hub does not know.
func notRegistered(name string) error {
	return fmt.Errorf("cluster %q is not registered. To list the registered clusters: agent-bootstrap list", name)
}

// connectHub reaches the hub, without a need for rights there.
func (a *app) connectHub(ctx context.Context) (*clusterClient, error) {
	config, raw, err := loadKubeconfig("--kubeconfig", a.hub.kubeconfig, a.hub.context)
	if err != nil {
		return nil, err
	}
	hub, err := newClusterClient("the hub", "--kubeconfig", config, raw)
	if err != nil {
		return nil, err
	}
	return hub, hub.connect(ctx, a.Now)
}

// clusterOptions say how a managed cluster is reached without the gateway.
type clusterOptions struct{ kubeconfig, context string }

func (o *clusterOptions) addFlags(fs *pflag.FlagSet, why string) {
	fs.StringVar(&o.kubeconfig, "cluster-kubeconfig", o.kubeconfig, "Kubeconfig file of the cluster"+why+".")
	fs.StringVar(&o.context, "cluster-context", o.context, "Context of the cluster in that file. Empty: the current one.")
}

// connectCluster reaches a managed cluster by its own kubeconfig, without a need for rights there.
func (a *app) connectCluster(ctx context.Context, name string, o clusterOptions) (*clusterClient, error) {
	config, raw, err := loadKubeconfig("--cluster-kubeconfig", o.kubeconfig, o.context)
	if err != nil {
		return nil, err
	}
	s, err := newClusterClient(fmt.Sprintf("cluster %q", name), "--cluster-kubeconfig", config, raw)
	if err != nil {
		return nil, err
	}
	return s, s.connect(ctx, a.Now)
}

// identifyCluster is connectCluster for commands that have to know which cluster it is.
func (a *app) identifyCluster(ctx context.Context, name string, o clusterOptions) (*clusterClient, error) {
	s, err := a.connectCluster(ctx, name, o)
	if err != nil {
		return nil, err
	}
	return s, s.identify(ctx)
}
