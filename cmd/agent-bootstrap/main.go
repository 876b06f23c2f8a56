// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Command agent-bootstrap registers clusters with a Cluster Gateway, and says what is wrong with those that cannot be reached.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/oam-dev/cluster-gateway/pkg/bootstrap"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends it, whatever it waits for
	cmd := bootstrap.NewCommand(bootstrap.Config{Out: os.Stdout, ErrOut: os.Stderr})
	if err := cmd.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		return 1
	}
	return 0
}
