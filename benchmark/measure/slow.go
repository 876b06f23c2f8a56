// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"k8s.io/client-go/tools/remotecommand"
)

// SlowReader is an exec whose output is read more slowly than it is written.
type SlowReader struct {
	cancel context.CancelFunc
	ended  chan error
	read   atomic.Int64
}

// StartSlowReader starts an exec of a program that writes without end, and reads its output at rate
// bytes per second.
func StartSlowReader(ctx context.Context, r *Route, pod Pod, rate int) (*SlowReader, error) {
	executor, err := pod.exec(r, "stdout=true", "cat", "/dev/zero")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	s := &SlowReader{cancel: cancel, ended: make(chan error, 1)}
	go func() {
		err := executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: &throttle{ctx: ctx, rate: rate, total: &s.read}})
		switch {
		case ctx.Err() != nil:
			err = nil
		case err == nil:
			err = errors.New("the program has ended")
		}
		if err != nil {
			err = fmt.Errorf("a slow reader by %s: %w", r.Name, err)
		}
		s.ended <- err
	}()
	return s, nil
}

// Stop ends the exec. It returns how many bytes were read, and an error if the exec has ended
// before.
func (s *SlowReader) Stop() (read int64, err error) {
	s.cancel()
	err = <-s.ended
	return s.read.Load(), err
}

// throttle accepts rate bytes per second.
type throttle struct {
	ctx   context.Context
	rate  int
	total *atomic.Int64
}

func (t *throttle) Write(p []byte) (int, error) {
	t.total.Add(int64(len(p)))
	timer := time.NewTimer(time.Duration(len(p)) * time.Second / time.Duration(t.rate))
	defer timer.Stop()
	select {
	case <-timer.C:
		return len(p), nil
	case <-t.ctx.Done():
		return 0, t.ctx.Err()
	}
}
