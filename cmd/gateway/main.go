// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Command gateway is the aggregated API server that carries Kubernetes API traffic to managed
// clusters. See pkg/server.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/oam-dev/cluster-gateway/pkg/server"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := server.NewCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "gateway:", err)
		return 1
	}
	return 0
}
