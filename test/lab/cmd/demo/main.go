// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Command demo starts a hub with a gateway, a cluster that the gateway reaches directly, and one
// behind a firewall. It then demonstrates kubectl on both. On a terminal, it leaves everything
// running until Ctrl-C.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/term"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	d := &demo{out: os.Stdout}
	err := d.start(ctx)
	if err == nil {
		d.tour(ctx)
		err = d.verdict(ctx)
		d.handOver(ctx, term.IsTerminal(int(os.Stdin.Fd())) && term.IsTerminal(int(os.Stdout.Fd())))
	}
	if closeErr := d.close(); closeErr != nil {
		fmt.Fprintln(os.Stderr, "demo: stopping:", closeErr)
		if err == nil {
			err = closeErr
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		return 1
	}
	return 0
}
