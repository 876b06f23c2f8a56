// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

// Command benchmark measures the cost of the gateway. It sends the same requests directly to a
// managed API server and by each route through the gateway. Without arguments, it starts a testbed
// of real components on this machine. See docs/benchmark.md.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/go-logr/logr"
	"github.com/spf13/pflag"
	"k8s.io/klog/v2"

	"github.com/oam-dev/cluster-gateway/benchmark/testbed"
)

func main() { os.Exit(run()) }

func run() int {
	// The library of the agents logs each connection.
	klog.SetLogger(logr.Discard())
	if len(os.Args) == 2 && os.Args[1] == testbed.AgentsArgument {
		return serveAgents()
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// The first signal stops the measurement. A second one ends the process.
	context.AfterFunc(ctx, stop)

	o := newOptions()
	flags := pflag.NewFlagSet("benchmark", pflag.ContinueOnError)
	o.addFlags(flags)
	if err := flags.Parse(os.Args[1:]); errors.Is(err, pflag.ErrHelp) {
		return 0
	} else if err != nil {
		fmt.Fprintln(os.Stderr, "benchmark:", err)
		return 2
	}
	if err := o.validate(flags.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "benchmark:", err)
		return 2
	}
	if err := benchmark(ctx, o, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "benchmark:", err)
		return 1
	}
	return 0
}

// serveAgents runs agents for the benchmark, which has started this process.
func serveAgents() int {
	if err := testbed.ServeAgents(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "benchmark:", err)
		return 1
	}
	return 0
}
