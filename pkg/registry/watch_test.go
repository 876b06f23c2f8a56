// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"net/http"
	"reflect"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"go.uber.org/goleak"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
)

// hubWatch is a watch on the hub whose events the test sends. It records when it is stopped.
type hubWatch struct {
	events  chan watch.Event
	stopped chan struct{}
}

func newHubWatch() *hubWatch {
	return &hubWatch{events: make(chan watch.Event), stopped: make(chan struct{})}
}

func (w *hubWatch) ResultChan() <-chan watch.Event { return w.events }
func (w *hubWatch) Stop()                          { close(w.stopped) } // a second call panics

func (w *hubWatch) mustBeStopped(t *testing.T) {
	t.Helper()
	select {
	case <-w.stopped:
	case <-time.After(10 * time.Second):
		t.Fatal("the hub's watch is not stopped")
	}
}

func next(t *testing.T, w watch.Interface) (watch.Event, bool) {
	t.Helper()
	select {
	case event, ok := <-w.ResultChan():
		return event, ok
	case <-time.After(10 * time.Second):
		t.Fatal("no event")
		return watch.Event{}, false
	}
}

func convert(event watch.Event) (watch.Event, error) {
	return NewREST(nil, cluster.ParseOptions{}).convert(event)
}

func TestWatchConvertsEveryKindOfEvent(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	secret := newPKI(t).x509Secret("a")
	rendered := cluster.Render(secret, cluster.ParseOptions{})
	invalid := secret.DeepCopy()
	invalid.Data["ca.crt"] = []byte("garbage")
	gone := &apierrors.NewResourceExpired("too old resource version: 1 (2)").ErrStatus
	bookmark := &v1alpha1.ClusterGateway{
		TypeMeta:   metav1.TypeMeta{APIVersion: "cluster.core.oam.dev/v1alpha1", Kind: "ClusterGateway"},
		ObjectMeta: metav1.ObjectMeta{ResourceVersion: "9", Annotations: map[string]string{metav1.InitialEventsAnnotationKey: "true"}},
	}
	hub := newHubWatch()
	w := newWatch(hub, convert)
	for _, test := range []struct{ in, want watch.Event }{
		{watch.Event{Type: watch.Added, Object: secret}, watch.Event{Type: watch.Added, Object: rendered}},
		{watch.Event{Type: watch.Modified, Object: invalid}, watch.Event{Type: watch.Modified, Object: cluster.Render(invalid, cluster.ParseOptions{})}},
		{watch.Event{Type: watch.Deleted, Object: secret}, watch.Event{Type: watch.Deleted, Object: rendered}},
		{watch.Event{Type: watch.Bookmark, Object: &corev1.Secret{ObjectMeta: metav1.ObjectMeta{
			ResourceVersion: "9", Annotations: map[string]string{metav1.InitialEventsAnnotationKey: "true"},
		}}}, watch.Event{Type: watch.Bookmark, Object: bookmark}},
		{watch.Event{Type: watch.Error, Object: gone}, watch.Event{Type: watch.Error, Object: gone}},
	} {
		hub.events <- test.in
		if got, ok := next(t, w); !ok || !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: got %+v", test.in.Type, got)
		}
	}
	// The hub ends the watch.
	close(hub.events)
	if _, ok := next(t, w); ok {
		t.Error("an event after the end")
	}
	hub.mustBeStopped(t)
	w.Stop()
}

func TestWatchStop(t *testing.T) {
	for name, prepare := range map[string]func(t *testing.T, hub *hubWatch, w watch.Interface){
		"while the hub is silent": func(*testing.T, *hubWatch, watch.Interface) {},
		"while the consumer is not reading": func(t *testing.T, hub *hubWatch, _ watch.Interface) {
			hub.events <- watch.Event{Type: watch.Added, Object: newPKI(t).x509Secret("a")} // taken, and held
		},
		"after an event": func(t *testing.T, hub *hubWatch, w watch.Interface) {
			hub.events <- watch.Event{Type: watch.Added, Object: newPKI(t).x509Secret("a")}
			next(t, w)
		},
	} {
		t.Run(name, func(t *testing.T) {
			defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
			hub := newHubWatch()
			w := newWatch(hub, convert)
			prepare(t, hub, w)
			w.Stop()
			w.Stop()
			hub.mustBeStopped(t)
			for { // a held event may still come
				if _, ok := next(t, w); !ok {
					break
				}
			}
		})
	}
}

func TestWatchOfSomethingElseEndsWithAnError(t *testing.T) {
	hub := newHubWatch()
	w := newWatch(hub, convert)
	hub.events <- watch.Event{Type: watch.Added, Object: &corev1.ConfigMap{}}
	event, _ := next(t, w)
	status, ok := event.Object.(*metav1.Status)
	if event.Type != watch.Error || !ok || status.Code != http.StatusInternalServerError {
		t.Errorf("event %+v", event)
	}
	if _, ok := next(t, w); ok {
		t.Error("the watch goes on")
	}
	hub.mustBeStopped(t)
}
