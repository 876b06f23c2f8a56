// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/watch"
)

// convertedWatch converts the events of a watch on the hub, one by one and in order. It buffers at
// most one event. Its goroutine ends when the hub's watch ends or when Stop is called, even if the
// consumer does not read. It then stops the hub's watch and closes the result.
type convertedWatch struct {
	hub     watch.Interface
	convert func(watch.Event) (watch.Event, error)
	result  chan watch.Event

	stop     chan struct{}
	stopOnce sync.Once
}

var _ watch.Interface = (*convertedWatch)(nil)

// newWatch returns a watch that owns the hub's watch.
func newWatch(hub watch.Interface, convert func(watch.Event) (watch.Event, error)) *convertedWatch {
	w := &convertedWatch{hub: hub, convert: convert, result: make(chan watch.Event), stop: make(chan struct{})}
	go w.run()
	return w
}

// ResultChan returns the channel of events. It is closed when the watch has ended.
func (w *convertedWatch) ResultChan() <-chan watch.Event { return w.result }

// Stop ends the watch. It does not wait. It can be called more than once.
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

// forward sends an event to the consumer. It returns false if the watch must end.
func (w *convertedWatch) forward(event watch.Event) bool {
	converted, err := w.convert(event)
	if err != nil {
		// If the event were omitted, the client would miss a change. After an error, it starts a
		// new watch.
		converted = watch.Event{Type: watch.Error, Object: &apierrors.NewInternalError(err).ErrStatus}
	}
	select {
	case w.result <- converted:
		return err == nil
	case <-w.stop:
		return false
	}
}
