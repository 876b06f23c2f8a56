// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Command lab-tools builds the components that the lab runs, if they are not
// built yet, and prints their paths, one NAME=PATH per line.
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
	var o lab.BinariesOptions
	flag.StringVar(&o.CacheDir, "cache-dir", "", "folder that keeps the components (default: $CLUSTER_GATEWAY_LAB_CACHE, or else the user's cache folder)")
	flag.BoolVar(&o.APIServerOnly, "api-server-only", false, "only etcd, kube-apiserver and kubectl")
	gateway := flag.String("gateway", "", "folder into which to build the gateways of the tests as well")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	o.Out = os.Stderr
	err := run(ctx, o, *gateway, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab-tools:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o lab.BinariesOptions, gateway string, out io.Writer) error {
	binaries, err := lab.FindBinaries(ctx, o)
	if err != nil {
		return err
	}
	for _, b := range binaries.All() {
		fmt.Fprintf(out, "%s=%s\n", b.Name, b.Path)
	}
	if gateway == "" {
		return nil
	}
	return lab.BuildGateways(ctx, gateway)
}
