// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/watch"
)

// convertedWatch is a watch of the hub with every event converted, in order and one by one: it holds at most one event that the
// consumer has not taken. Its goroutine ends when the hub's watch does or when Stop is called, also while the consumer is not
// reading; it stops the hub's watch and closes the result.
type convertedWatch struct {
	hub     watch.Interface
	convert func(watch.Event) (watch.Event, error)
	result  chan watch.Event

	stop     chan struct{}
	stopOnce sync.Once
}

var _ watch.Interface = (*convertedWatch)(nil)

// newWatch takes over the hub's watch.
func newWatch(hub watch.Interface, convert func(watch.Event) (watch.Event, error)) *convertedWatch {
	w := &convertedWatch{hub: hub, convert: convert, result: make(chan watch.Event), stop: make(chan struct{})}
	go w.run()
	return w
}

// ResultChan is closed when the watch has ended.
func (w *convertedWatch) ResultChan() <-chan watch.Event { return w.result }

// Stop ends the watch. It does not wait, and may be called more than once.
func (w *convertedWatch) Stop() { w.stopOnce.Do(func() { close(w.stop) }) }

func (w *convertedWatch) run() {
	defer close(w.result)
	defer w.hub.Stop()
	for {
		select {
		case <-w.stop:
			return
		case event, ok := <-w.hub.ResultChan():
			if !ok || !w.forward(event) {
				return
			}
		}
	}
}

// forward is false when the watch is to end.
func (w *convertedWatch) forward(event watch.Event) bool {
	converted, err := w.convert(event)
	if err != nil {
		// Leaving the event out would be a change that the client never learns of. It starts anew after an error.
		converted = watch.Event{Type: watch.Error, Object: &apierrors.NewInternalError(err).ErrStatus}
	}
	select {
	case w.result <- converted:
		return err == nil
	case <-w.stop:
		return false
	}
}
