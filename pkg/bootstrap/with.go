// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"

	"github.com/spf13/cobra"

	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

func (a *app) withCommand() *cobra.Command {
	o := &endpointOptions{}
	cmd := &cobra.Command{
		Use:   "with NAME -- COMMAND [ARGS...]",
		Short: "Run a program, such as helm, with the kubeconfig of a cluster",
		Long: `with runs a program with the environment variable KUBECONFIG set to a kubeconfig that reaches the cluster
NAME through the gateway, with your own credential for the hub. The kubeconfig is a temporary file that
is deleted when the program ends. Your own kubeconfig does not change.

The program uses your terminal and receives your signals. The command returns the exit code of the program.`,
		Example: `  agent-bootstrap with edge-1 -- helm list -A
  agent-bootstrap with edge-1 -- kubectl get nodes

  # A shell in which kubectl uses the cluster.
  agent-bootstrap with edge-1 -- bash`,
		Args: func(cmd *cobra.Command, args []string) error {
			if cmd.ArgsLenAtDash() != 1 || len(args) < 2 {
				return fmt.Errorf("invalid arguments %q: must be NAME -- COMMAND [ARGS...]", args)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), args[0], args[1:], o)
		},
	}
	o.addFlags(cmd.Flags())
	return cmd
}

func (a *app) with(ctx context.Context, name string, command []string, o *endpointOptions) error {
	if err := errors.Join(registration.ValidateName(name), o.validate()); err != nil {
		return err
	}
	program, err := exec.LookPath(command[0])
	if err != nil {
		return err
	}
	config, raw, err := loadKubeconfig("--kubeconfig", a.hub.kubeconfig, a.hub.context)
	if err != nil {
		return err
	}
	hub, err := newClusterClient("the hub", "--kubeconfig", config, raw)
	if err != nil {
		return err
	}
	if err := a.checkExists(ctx, hub, name); err != nil {
		return err
	}
	target, err := newGatewayTarget(ctx, hub, o)
	if err != nil {
		return err
	}
	session, err := newSessionKubeconfigs(target)
	if err != nil {
		return err
	}
	kubeconfig, err := session.write(name)
	if err == nil && ctx.Err() != nil {
		err = errors.New("interrupted")
	}
	if err == nil {
		err = a.passTo(exec.Command(program, command[1:]...), kubeconfig) //nolint:gosec,noctx // the user's command, which decides itself what a signal means
	}
	return errors.Join(err, session.remove())
}

// passTo runs a program in place of this one. It does not end with a context: the program may be
// interactive, and then Ctrl-C is for it to handle.
func (a *app) passTo(cmd *exec.Cmd, kubeconfig string) error {
	cmd.Env = programEnvironment(kubeconfig)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.In, a.Out, a.ErrOut
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, slices.DeleteFunc(passedSignals(), signal.Ignored)...) // nohup ignores SIGHUP
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return err
	}
	ended, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case s := <-signals:
				if !fromTerminal(s) {
					_ = cmd.Process.Signal(s) // it may have ended
				}
			case <-ended:
				return
			}
		}
	}()
	err := cmd.Wait()
	close(ended)
	<-stopped
	return passedError(err)
}

// passedError turns the result of a program into that of this one.
func passedError(err error) error {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	code := exit.ExitCode()
	if fromSignal, ok := signalCode(exit.ProcessState); ok {
		code = fromSignal
	}
	return &ExitError{Code: code} // the program has said why
}
