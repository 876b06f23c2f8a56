// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Command agent-bootstrap registers clusters with a Cluster Gateway, uses them, and finds out why a
// cluster cannot be reached. Started as kubectl-cg, it is the kubectl plugin "kubectl cg".
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	_ "k8s.io/client-go/plugin/pkg/client/auth" // kubeconfigs with an auth-provider, as kubectl supports them

	"github.com/oam-dev/cluster-gateway/pkg/bootstrap"
)

func main() { os.Exit(run()) }

func run() int {
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // nohup ignores it
		signals = append(signals, syscall.SIGHUP) // the terminal was closed
	}
	ctx, stop := signal.NotifyContext(context.Background(), signals...)
	defer stop()
	context.AfterFunc(ctx, stop) // after the first signal, so that a second one ends the process at once
	cmd := bootstrap.NewCommand(bootstrap.Config{In: os.Stdin, Out: os.Stdout, ErrOut: os.Stderr, Program: os.Args[0]})
	cmd.SetArgs(bootstrap.Arguments(os.Args))
	err := cmd.ExecuteContext(ctx)
	if err != nil && err.Error() != "" {
		fmt.Fprintln(os.Stderr, "error:", err)
	}
	return bootstrap.ExitCode(err)
}
