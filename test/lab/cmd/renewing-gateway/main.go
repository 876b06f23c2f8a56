// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Command renewing-gateway is the gateway for tests that cannot wait until a token is renewed:
// kube-apiserver issues no token for less than ten minutes. It renews tokens at the age in
// $RENEW_TOKENS_AFTER, and looks for changes of a cluster's CA as often. The gateway has no flag
// for either.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/oam-dev/cluster-gateway/pkg/server"
	"github.com/oam-dev/cluster-gateway/test/lab"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	age, err := time.ParseDuration(os.Getenv(lab.RenewTokensAfterVariable))
	if err != nil {
		fmt.Fprintf(os.Stderr, "renewing-gateway: invalid $%s: %v\n", lab.RenewTokensAfterVariable, err)
		return 1
	}
	cmd := server.NewCommand(func(c *server.Config) { c.RenewTokensAfter, c.UpkeepInterval = age, age })
	if err := cmd.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "gateway:", err)
		return 1
	}
	return 0
}
