// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"runtime"
)

// spawner runs functions on one operating-system thread of its own.
//
// Children must be started there for two reasons. The kernel sends the
// parent-death signal when the thread that forked a child ends, not when the
// process does, and Go ends and makes threads as it likes. And a namespace is
// the property of a thread: what is forked from a thread that has moved into one
// is born in it.
type spawner struct {
	work chan func()
	quit chan struct{}
	done chan struct{}
}

// newSpawner starts the thread and runs setup on it first.
func newSpawner(setup func() error) (*spawner, error) {
	s := &spawner{work: make(chan func()), quit: make(chan struct{}), done: make(chan struct{})}
	ready := make(chan error, 1)
	go s.run(setup, ready)
	if err := <-ready; err != nil {
		<-s.done
		return nil, err
	}
	return s, nil
}

func (s *spawner) run(setup func() error, ready chan<- error) {
	runtime.LockOSThread()
	if onMainThread() {
		// The runtime cannot end the main thread, it only parks it, and then a
		// namespace that it moved into would live as long as the process. While
		// this goroutine holds the main thread, the next one gets another.
		go s.run(setup, ready)
		<-s.done
		runtime.UnlockOSThread()
		return
	}
	// Never unlocked: the thread, with all that setup did to it, ends here.
	defer close(s.done)
	if err := setup(); err != nil {
		ready <- err
		return
	}
	ready <- nil
	for {
		select {
		case f := <-s.work:
			f()
		case <-s.quit:
			return
		}
	}
}

// do runs f on the spawner's thread and returns what it returns.
func (s *spawner) do(f func() error) error {
	result := make(chan error, 1)
	select {
	case s.work <- func() { result <- f() }:
		return <-result
	case <-s.done:
		return fmt.Errorf("starting a process: %w", errClosed)
	}
}

// close ends the thread; the kernel then kills whatever was started from it and
// still runs. It must be called once.
func (s *spawner) close() {
	close(s.quit)
	<-s.done
}
