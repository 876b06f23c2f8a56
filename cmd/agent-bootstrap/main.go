// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Command agent-bootstrap registers clusters with a Cluster Gateway, and finds out why a cluster
// cannot be reached.
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
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // after the first signal, so that a second one ends the process at once
	cmd := bootstrap.NewCommand(bootstrap.Config{Out: os.Stdout, ErrOut: os.Stderr})
	if err := cmd.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		return 1
	}
	return 0
}
