// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package labtest

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/oam-dev/cluster-gateway/test/lab"
)

// startTimeout bounds the start of a lab. It includes the build of its
// components if they are missing.
const startTimeout = 30 * time.Minute

// Main creates a lab, calls start to fill it, runs the tests, closes the lab, and exits. It keeps
// the logs if a test or start failed. The context of start ends when start returns. What start has
// started continues to run.
func Main(m *testing.M, start func(ctx context.Context, l *lab.Lab) error) {
	flag.Parse()
	os.Exit(run(m, lab.BinariesOptions{}, func() {}, start))
}

// MainAPIServers is like [Main], with bare API servers: for each name, a kube-apiserver with its
// own etcd, and nothing else. No controllers run, with one exception: a deleted namespace is
// emptied and removed at once. The ClusterRoles view, edit and admin have their rules. Then each of
// prepare is called.
func MainAPIServers(m *testing.M, servers map[string]**lab.Cluster, prepare ...func(ctx context.Context) error) {
	flag.Parse()
	ctx, stop := context.WithCancel(context.Background())
	code := run(m, lab.BinariesOptions{APIServerOnly: true}, stop, func(starting context.Context, l *lab.Lab) error {
		var group errgroup.Group
		for name, into := range servers {
			group.Go(func() (err error) {
				*into, err = l.StartCluster(starting, lab.ClusterOptions{Name: name, NoControllerManager: true, NoKwok: true})
				if err != nil {
					return err
				}
				go removeNamespaces(ctx, *into)
				return aggregateRoles(starting, *into)
			})
		}
		if err := group.Wait(); err != nil {
			return err
		}
		for _, f := range prepare {
			if err := f(starting); err != nil {
				return err
			}
		}
		return nil
	})
	os.Exit(code)
}

// run calls end after the tests, before it closes the lab.
func run(m *testing.M, o lab.BinariesOptions, end func(), start func(context.Context, *lab.Lab) error) (code int) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	defer end()
	starting, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	o.Out = os.Stderr
	binaries, err := lab.FindBinaries(starting, o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "build the lab's components:", err)
		return 1
	}
	l, err := lab.New(ctx, lab.Options{Binaries: binaries, Out: os.Stderr, KeepLogs: func() bool { return code != 0 }})
	if err != nil {
		fmt.Fprintln(os.Stderr, "create the lab:", err)
		return 1
	}
	defer func() {
		if err := l.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "stop the lab:", err)
			code = 1
		}
	}()
	if err := start(starting, l); err != nil {
		fmt.Fprintln(os.Stderr, "start the lab:", err)
		return 1
	}
	cancel()
	code = m.Run()
	end()
	return code
}
