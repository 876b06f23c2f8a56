// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/component-base/term"
	"sigs.k8s.io/yaml"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/internal/buildversion"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

// Config configures the commands. The zero value works: its output is discarded.
type Config struct {
	// Program is the path that the program was started with. If its name is kubectl-cg, texts say
	// "kubectl cg". Otherwise, they say agent-bootstrap.
	Program string
	// In is the input of the programs that the commands start. Nil means no input.
	In io.Reader
	// Out receives results, such as tables and YAML. ErrOut receives progress and hints. Nil means
	// that the output is discarded.
	Out, ErrOut io.Writer
	// Now is the clock. Nil means the system's clock.
	Now func() time.Time
	// AfterStep is called after each step of a command, with the name of the step. If it returns an
	// error, the command ends with that error. Nil means that it is not called.
	AfterStep func(step string) error
}

// app is what the commands share.
type app struct {
	Config
	hub hubOptions
	// output is -o: "", yaml or json.
	output string
	// ownCommand matches commands to run in texts. It is nil if the texts name the right program.
	ownCommand *regexp.Regexp
}

// hubOptions are the flags that say where the hub is.
type hubOptions struct {
	kubeconfig, context, namespace string
}

func (o *hubOptions) addFlags(fs *pflag.FlagSet) {
	fs.StringVar(&o.kubeconfig, "kubeconfig", o.kubeconfig, "Kubeconfig file of the hub. Default: $KUBECONFIG or ~/.kube/config, as for kubectl.")
	fs.StringVar(&o.context, "context", o.context, "Context in the kubeconfig file of the hub. Default: its current context.")
	fs.StringVar(&o.namespace, "secret-namespace", o.namespace, "Namespace on the hub with the Secrets of the clusters: the value of the gateway's flag with the same name.")
}

// NewCommand returns the command agent-bootstrap. To interrupt it, cancel the context that it runs
// with.
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
		Short: "Register clusters with a Cluster Gateway",
		Long: `agent-bootstrap registers clusters with a Cluster Gateway. The gateway runs in the hub, which is a Kubernetes
cluster too. A registered cluster can be reached through the hub, even if it is behind a firewall.

You can run every command again: it continues where it was interrupted, and does not change what is
already right.`,
		Example: `  # Register a cluster behind a firewall: install the agent there, and wait until the cluster is reachable.
  agent-bootstrap register edge-1 --cluster-kubeconfig edge-1.kubeconfig

  # Without the cluster's kubeconfig: create a file that someone who has it applies with kubectl.
  agent-bootstrap invite edge-1 > invite.yaml

  # Use the cluster, with your own credential for the hub.
  agent-bootstrap kubeconfig edge-1 --merge
  kubectl --context edge-1 get nodes

  # Run kubectl in several clusters, or any program with one.
  agent-bootstrap each -l env=prod -- get pods -A
  agent-bootstrap with edge-1 -- helm list

  # Find out why a cluster cannot be reached.
  agent-bootstrap doctor edge-1`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       buildversion.String(),
		Args:          unknownCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	a.nameRoot(cmd)
	cmd.SetOut(a.Out)
	cmd.SetErr(a.ErrOut)
	a.hub.addFlags(cmd.PersistentFlags())
	cmd.AddCommand(a.registerCommand(), a.inviteCommand(), a.unregisterCommand(), a.listCommand(), a.statusCommand(), a.doctorCommand(), a.kubeconfigCommand(), a.rotateCommand(),
		a.canICommand(), a.eachCommand(), a.withCommand(), a.exportCommand(), a.credentialCommand(), a.supportBundleCommand())
	a.addCompletions(cmd)
	a.useProgramName(cmd)
	cmd.SetFlagErrorFunc(flagError)
	cmd.SetUsageTemplate(strings.ReplaceAll(cmd.UsageTemplate(), "FlagUsages ", fmt.Sprintf("FlagUsagesWrapped %d ", helpWidth(a.Out))))
	return cmd
}

// unknownCommand refuses arguments of the root command.
func unknownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	text := fmt.Sprintf("unknown command %q", args[0])
	cmd.SuggestionsMinimumDistance = 2 // the default of cobra, which applies it only in its own message
	if similar := cmd.SuggestionsFor(args[0]); len(similar) > 0 {
		text += fmt.Sprintf(": did you mean %s?", strings.Join(similar, " or "))
	}
	return fmt.Errorf("%s\nTo see the commands: %s --help", text, cmd.CommandPath())
}

var days = regexp.MustCompile(`^[0-9]+d$`)

// flagError adds to an error about a flag what to do.
func flagError(cmd *cobra.Command, err error) error {
	var invalid *pflag.InvalidValueError
	if errors.As(err, &invalid) && days.MatchString(invalid.GetValue()) && invalid.GetFlag().Value.Type() == "duration" {
		return fmt.Errorf("%w. Days are not a unit: for example, 30 days are 720h", err)
	}
	return fmt.Errorf("%w\nTo see the flags: %s --help", err, cmd.CommandPath())
}

// Widths of help texts: that of the terminal within these limits, and the larger one without a
// terminal.
const (
	minHelpWidth = 80
	maxHelpWidth = 120
)

func helpWidth(out io.Writer) int {
	width, _, err := term.TerminalSize(out)
	if err != nil {
		return maxHelpWidth
	}
	return min(max(width, minHelpWidth), maxHelpWidth)
}

// addOutput adds the flag -o. what names the objects that it prints.
func (a *app) addOutput(fs *pflag.FlagSet, what string) {
	fs.StringVarP(&a.output, "output", "o", a.output, "Print "+what+" in this format: yaml or json.")
}

func (a *app) checkOutput() error {
	if a.output != "" && a.output != "yaml" && a.output != "json" {
		return fmt.Errorf("invalid --output %q: must be yaml or json", a.output)
	}
	return nil
}

// print writes documents in the format of -o.
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

// say writes a line for the person who runs the command.
func (a *app) say(format string, args ...any) {
	fmt.Fprintln(a.ErrOut, a.named(fmt.Sprintf(format, args...)))
}

// step reports a step that is done. It returns an error if the command is to end here.
func (a *app) step(ctx context.Context, name, format string, args ...any) error {
	a.say("  %-12s %s", name, fmt.Sprintf(format, args...))
	if a.AfterStep != nil {
		if err := a.AfterStep(name); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return errors.New("interrupted: to continue, run the same command again")
	}
	return nil
}

// oneName requires one argument, the name of a cluster.
func oneName(cmd *cobra.Command, args []string) error {
	switch len(args) {
	case 0:
		return fmt.Errorf("missing the name of the cluster: %s NAME", cmd.CommandPath())
	case 1:
		return nil
	default:
		return fmt.Errorf("invalid arguments %q: %s takes the name of one cluster", args, cmd.CommandPath())
	}
}

// checkName checks the name of a cluster.
func checkName(name string) error {
	return registration.ValidateName(name)
}

// notRegistered is the error for a cluster that the hub does not know.
func notRegistered(name string) error {
	return fmt.Errorf("cluster %q is not registered. To list the registered clusters: agent-bootstrap list", name)
}

// connectHub connects to the hub. The caller needs no rights there.
func (a *app) connectHub(ctx context.Context) (*clusterClient, error) {
	config, raw, err := loadKubeconfig("--kubeconfig", a.hub.kubeconfig, a.hub.context)
	if err != nil {
		return nil, err
	}
	hub, err := newClusterClient("the hub", kubeconfigSource("--kubeconfig", a.hub.kubeconfig), config, raw)
	if err != nil {
		return nil, err
	}
	return hub, hub.connect(ctx, a.Now)
}

// clusterOptions are the flags that say how to reach a managed cluster without the gateway.
type clusterOptions struct{ kubeconfig, context string }

func (o *clusterOptions) addFlags(fs *pflag.FlagSet, why string) {
	fs.StringVar(&o.kubeconfig, "cluster-kubeconfig", o.kubeconfig, "Kubeconfig file of the cluster"+why+".")
	fs.StringVar(&o.context, "cluster-context", o.context, "Context in --cluster-kubeconfig. Default: its current context.")
}

// connectCluster connects to a managed cluster with its own kubeconfig. The caller needs no rights
// there.
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

// identifyCluster connects to a managed cluster, and finds out which one it is.
func (a *app) identifyCluster(ctx context.Context, name string, o clusterOptions) (*clusterClient, error) {
	s, err := a.connectCluster(ctx, name, o)
	if err != nil {
		return nil, err
	}
	return s, s.identify(ctx)
}
