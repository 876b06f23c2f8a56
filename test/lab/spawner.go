// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"runtime"
)

// spawner runs functions on its own operating-system thread.
//
// Children must be started there for two reasons. The kernel sends the parent-death signal when the
// thread that forked a child ends, not when the process ends, and Go creates and ends threads at
// any time. And a namespace belongs to a thread: a child starts in the namespace of the thread that
// forked it.
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
		// The runtime cannot end the main thread, it only parks it, and a namespace that it entered would
		// then exist until the process ends. While this goroutine holds the main thread, the next one
		// gets another.
		go s.run(setup, ready)
		<-s.done
		runtime.UnlockOSThread()
		return
	}
	// Never unlocked: the thread ends here, with everything that setup changed.
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

// close ends the thread. The kernel then kills all processes that were started from it and still
// run. It must be called once.
func (s *spawner) close() {
	close(s.quit)
	<-s.done
}
