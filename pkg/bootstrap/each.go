// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

type eachOptions struct {
	endpointOptions
	selection
	kubectl              string
	parallel             int
	timeout              time.Duration
	table, prefix, stdin bool
}

func (a *app) eachCommand() *cobra.Command {
	o := &eachOptions{kubectl: "kubectl", parallel: 10, timeout: 30 * time.Second}
	cmd := &cobra.Command{
		Use:   "each (NAME... | -l LABELS | --all) -- KUBECTL-ARGS...",
		Short: "Run kubectl in several clusters",
		Long: `each runs your kubectl once for each selected cluster, through the gateway and with your own credential for
the hub. It runs in several clusters in parallel. When kubectl ends in a cluster, the command prints the
name of the cluster and then the output. At the end, it lists the clusters in which kubectl failed, each
with the reason.

A cluster that does not answer is given up after --timeout. Ctrl-C ends every kubectl at once, and the
command lists the clusters that are not done.

The exit code is 0 if kubectl succeeded in all clusters, 1 if it failed in at least one, 2 if nothing was
run (invalid flags, no cluster is selected, or the hub does not answer), and 130 after Ctrl-C.`,
		Example: `  agent-bootstrap each -l env=prod -- get pods -A

  # One table with a column CLUSTER.
  agent-bootstrap each --all --table -- get nodes

  # Apply a file in two clusters.
  agent-bootstrap each edge-1 edge-2 -- apply -f app.yaml

  # Follow a log in all clusters.
  agent-bootstrap each --all --prefix --timeout 0 -- logs -f deployment/app

  # Give the same input to each kubectl.
  kustomize build . | agent-bootstrap each --all --stdin -- apply -f -`,
		Args: func(cmd *cobra.Command, args []string) error { return trouble(eachArgs(cmd, args)) },
		RunE: func(cmd *cobra.Command, args []string) error {
			dash := cmd.ArgsLenAtDash()
			o.names = args[:dash]
			return a.each(cmd.Context(), args[dash:], o)
		},
	}
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return trouble(flagError(cmd, err)) })
	fs := cmd.Flags()
	o.selection.addFlags(fs)
	fs.IntVar(&o.parallel, "parallel", o.parallel, "In how many clusters kubectl runs at the same time.")
	fs.DurationVar(&o.timeout, "timeout", o.timeout, "How long kubectl may run in a cluster. 0 means no limit.")
	fs.BoolVar(&o.table, "table", o.table, "Print one table with a column CLUSTER, for commands such as get and top.")
	fs.BoolVar(&o.prefix, "prefix", o.prefix, "Print each line at once, with the name of its cluster before it.")
	fs.BoolVar(&o.stdin, "stdin", o.stdin, "Read the standard input, and give it to each kubectl. Without it, kubectl has no input.")
	fs.StringVar(&o.kubectl, "kubectl", o.kubectl, "Path or name of kubectl.")
	o.endpointOptions.addFlags(fs)
	return cmd
}

func eachArgs(cmd *cobra.Command, args []string) error {
	switch dash := cmd.ArgsLenAtDash(); {
	case dash < 0:
		return fmt.Errorf("the arguments for kubectl must follow --, for example: %s --all -- get nodes", cmd.CommandPath())
	case dash == len(args):
		return errors.New("no arguments for kubectl follow --")
	}
	return nil
}

// misleading are flags of kubectl with which it would use something other than the cluster under
// whose name its output is shown. Names of other contexts are not in the kubeconfig that it gets.
var misleading = []string{"--kubeconfig", "--server", "-s"}

func (o *eachOptions) validate(args []string) error {
	errs := []error{o.selection.validate(), o.endpointOptions.validate()}
	add := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if o.parallel < 1 {
		add("invalid --parallel %d: must be at least 1", o.parallel)
	}
	if o.timeout < 0 {
		add("invalid --timeout %s: must not be negative", o.timeout)
	}
	if o.table && o.prefix {
		add("--table cannot be used with --prefix")
	}
	for _, arg := range args {
		name, _, _ := strings.Cut(arg, "=")
		if name == "--" { // what follows is for a program in a Pod
			break
		}
		if slices.Contains(misleading, name) {
			add("invalid argument %q for kubectl: the cluster is selected before --", arg)
		}
		if o.table && name == "--no-headers" {
			add("invalid argument %q for kubectl: --table needs the headers", arg)
		}
	}
	return errors.Join(errs...)
}

// maxInput bounds what --stdin reads.
const maxInput = 64 << 20

func (a *app) each(ctx context.Context, args []string, o *eachOptions) error {
	run, err := a.newEachRun(ctx, args, o)
	if err != nil {
		return trouble(err)
	}
	if run.session, err = newSessionKubeconfigs(run.target); err != nil {
		return trouble(err)
	}
	results := run.all(ctx)
	if err := run.session.remove(); err != nil {
		a.say("The temporary kubeconfigs in %s were not deleted: %v", run.session.dir, err)
	}
	return a.eachSummary(ctx, results)
}

// newEachRun checks everything that can be checked before anything runs.
func (a *app) newEachRun(ctx context.Context, args []string, o *eachOptions) (*eachRun, error) {
	if err := o.validate(args); err != nil {
		return nil, err
	}
	run := &eachRun{eachOptions: o, args: args}
	var err error
	if run.program, err = exec.LookPath(o.kubectl); err != nil {
		return nil, fmt.Errorf("%w: install kubectl, or set --kubectl", err)
	}
	hub, err := a.connectHub(ctx)
	if err != nil {
		return nil, err
	}
	if err := a.requireGateway(ctx, hub); err != nil {
		return nil, err
	}
	if run.clusters, err = a.selected(ctx, hub, &o.selection); err != nil {
		return nil, err
	}
	if run.target, err = newGatewayTarget(ctx, hub, &o.endpointOptions); err != nil {
		return nil, err
	}
	if o.stdin && a.In != nil {
		if run.input, err = io.ReadAll(io.LimitReader(a.In, maxInput+1)); err != nil {
			return nil, fmt.Errorf("--stdin: %w", err)
		}
		if len(run.input) > maxInput {
			return nil, fmt.Errorf("--stdin: the input is larger than %d MiB", maxInput>>20)
		}
	}
	run.console = newConsole(a.Out, a.ErrOut)
	return run, nil
}

// eachSummary shows what was done, and returns the error of the command.
func (a *app) eachSummary(ctx context.Context, results []eachResult) error {
	var failed, notDone []eachResult
	for _, r := range results {
		switch r.outcome {
		case eachFailed:
			failed = append(failed, r)
		case eachNotDone:
			notDone = append(notDone, r)
		}
	}
	done := len(results) - len(failed) - len(notDone)
	list := func(title string, results []eachResult) {
		if len(results) == 0 {
			return
		}
		a.say("%s", title)
		width := 0
		for _, r := range results {
			width = max(width, len(r.cluster))
		}
		for _, r := range results {
			a.say("  %-*s  %s", width, r.cluster, r.reason)
		}
	}
	list("Failed:", failed)
	list("Not done:", notDone)
	switch {
	case ctx.Err() != nil:
		return &ExitError{exitInterrupted, fmt.Errorf("interrupted: %d of %d clusters were done, %d failed, %d were not done", done, len(results), len(failed), len(notDone))}
	case len(failed) > 0:
		return &ExitError{exitFailed, fmt.Errorf("failed in %d of %d clusters", len(failed), len(results))}
	}
	a.say("Done in %d clusters.", done)
	return nil
}
