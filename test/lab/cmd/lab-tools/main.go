// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Command lab-tools builds the components that the lab runs, if they are not
// there yet, and prints where they are, one NAME=PATH a line.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/oam-dev/cluster-gateway/test/lab"
)

func main() {
	cache := flag.String("cache-dir", "", "where components are kept (default: $CLUSTER_GATEWAY_LAB_CACHE, or else the user's cache folder)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *cache, os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab-tools:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, cache string, out, progress io.Writer) error {
	binaries, err := lab.FindBinaries(ctx, lab.BinariesOptions{CacheDir: cache, Out: progress})
	if err != nil {
		return err
	}
	for _, b := range binaries.All() {
		fmt.Fprintf(out, "%s=%s\n", b.Name, b.Path)
	}
	return nil
}
