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

	"github.com/oam-dev/cluster-gateway/test/lab"
)

// startTimeout bounds start.
const startTimeout = 15 * time.Minute

// Main makes a lab, has start fill it, runs the tests, closes the lab, and exits. The logs are kept when a test failed, or start did. The
// context of start ends with it; what is started with it does not.
func Main(m *testing.M, start func(ctx context.Context, l *lab.Lab) error) {
	flag.Parse()
	os.Exit(run(m, start))
}

func run(m *testing.M, start func(context.Context, *lab.Lab) error) (code int) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	l, err := lab.New(ctx, lab.Options{Out: os.Stderr, KeepLogs: func() bool { return code != 0 }})
	if err != nil {
		fmt.Fprintln(os.Stderr, "making the lab:", err)
		return 1
	}
	defer func() {
		if err := l.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "stopping the lab:", err)
			code = 1
		}
	}()
	starting, cancel := context.WithTimeout(ctx, startTimeout)
	err = start(starting, l)
	cancel()
	if err != nil {
		fmt.Fprintln(os.Stderr, "starting the lab:", err)
		return 1
	}
	return m.Run()
}
