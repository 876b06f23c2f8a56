// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"go.uber.org/goleak"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
)

// change is one call of onChange.
type change struct {
	name, resourceVersion string
	valid                 bool
}

// runStore runs a Store until the test ends. Its hub lists the Secrets and then sends the events
// that the test puts into the watch.
func runStore(t *testing.T, hub *fake.Clientset) (*Store, <-chan change) {
	t.Helper()
	changes := make(chan change, 100)
	store := NewStore(hub, testNamespace, cluster.ParseOptions{})
	store.Subscribe(func(name string, c *cluster.Cluster) {
		held, ok := store.Get(name)
		if ok != (c != nil) || held != c {
			t.Errorf("%s: onChange comes before the Store has it", name)
		}
		ch := change{name: name}
		if c != nil {
			ch.resourceVersion, ch.valid = c.ResourceVersion, c.Err() == nil
		}
		changes <- ch
	})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := store.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return store, changes
}

func expect(t *testing.T, changes <-chan change, want ...change) {
	t.Helper()
	for _, w := range want {
		select {
		case got := <-changes:
			if got != w {
				t.Errorf("change %+v, not %+v", got, w)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("no change; want %+v", w)
		}
	}
}

func version(secret *corev1.Secret, resourceVersion string) *corev1.Secret {
	changed := secret.DeepCopy()
	changed.ResourceVersion = resourceVersion
	return changed
}

func TestStoreFollowsTheHub(t *testing.T) {
	ignore := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, ignore) })
	pki := newPKI(t)
	a, b := pki.x509Secret("a"), pki.x509Secret("b")
	b.Data["endpoint"] = nil
	hub := fake.NewClientset(a, b)
	source := watch.NewFake()
	var selectors []string
	hub.PrependReactor("list", "secrets", func(action clienttesting.Action) (bool, runtime.Object, error) {
		selectors = append(selectors, action.(clienttesting.ListAction).GetListRestrictions().Labels.String())
		return true, &corev1.SecretList{ListMeta: metav1.ListMeta{ResourceVersion: "1"}, Items: []corev1.Secret{*a, *b}}, nil
	})
	hub.PrependWatchReactor("secrets", func(action clienttesting.Action) (bool, watch.Interface, error) {
		selectors = append(selectors, action.(clienttesting.WatchAction).GetWatchRestrictions().Labels.String())
		return true, source, nil
	})
	store, changes := runStore(t, hub)

	expect(t, changes, change{"a", "1", true}, change{"b", "1", false})
	source.Modify(version(b, "2"))
	fixed := version(a, "3")
	fixed.Name = "b"
	source.Modify(fixed)
	source.Add(version(pki.x509Secret("c"), "4"))
	// In a watch with a selector, a Secret that loses its label is deleted.
	unlabelled := version(a, "5")
	unlabelled.Labels = nil
	source.Delete(unlabelled)
	expect(t, changes, change{"b", "2", false}, change{"b", "3", true}, change{"c", "4", true}, change{"a", "", false})

	if !store.HasSynced() {
		t.Error("not synced")
	}
	if _, ok := store.Get("a"); ok {
		t.Error("a is still there")
	}
	if c, ok := store.Get("b"); !ok || c.ResourceVersion != "3" {
		t.Errorf("b is %v", c)
	}
	if list := store.List(); len(list) != 2 || list[0].Name != "b" || list[1].Name != "c" {
		t.Errorf("list %v", list)
	}
	for _, s := range selectors {
		if s != v1alpha1.LabelCredentialType {
			t.Errorf("selector %q", s)
		}
	}
	if err := store.Run(t.Context()); err == nil {
		t.Error("runs twice")
	}
}

// If a watch cannot be resumed, the next list must result in the changes since then, and in no
// others.
func TestStoreReplace(t *testing.T) {
	pki := newPKI(t)
	var got []string
	store := NewStore(fake.NewClientset(), testNamespace, cluster.ParseOptions{})
	store.Subscribe(func(name string, c *cluster.Cluster) {
		if c == nil {
			got = append(got, name+" gone")
			return
		}
		got = append(got, fmt.Sprint(name, " ", c.ResourceVersion, " ", c.UID))
	})
	if store.HasSynced() {
		t.Error("synced before it began")
	}
	kept, changed, removed, anew := pki.x509Secret("kept"), pki.x509Secret("changed"), pki.x509Secret("removed"), pki.x509Secret("anew")
	replace := func(secrets ...*corev1.Secret) []string {
		got = nil
		var list []any
		for _, s := range secrets {
			list = append(list, s)
		}
		if err := (*secretHandler)(store).Replace(list, ""); err != nil {
			t.Fatal(err)
		}
		return got
	}
	want := "[kept 1 uid-kept changed 1 uid-changed removed 1 uid-removed anew 1 uid-anew]"
	if got := replace(kept, changed, removed, anew); fmt.Sprint(got) != want {
		t.Errorf("at first: %v", got)
	}
	if !store.HasSynced() {
		t.Error("not synced")
	}
	anew = anew.DeepCopy()
	anew.UID = "uid-2"
	want = "[removed gone changed 2 uid-changed anew 1 uid-2 new 1 uid-new]"
	if got := replace(kept, version(changed, "2"), anew, pki.x509Secret("new")); fmt.Sprint(got) != want {
		t.Errorf("then: %v", got)
	}
	if got := replace(); fmt.Sprint(got) != "[anew gone changed gone kept gone new gone]" || len(store.List()) != 0 {
		t.Errorf("at last: %v", got)
	}
}

func TestStoreIsSafeForConcurrentUse(t *testing.T) {
	pki := newPKI(t)
	hub := fake.NewClientset()
	source := watch.NewFake()
	hub.PrependWatchReactor("secrets", func(clienttesting.Action) (bool, watch.Interface, error) { return true, source, nil })
	store, changes := runStore(t, hub)
	ctx, cancel := context.WithCancel(t.Context())
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for ctx.Err() == nil {
				if c, ok := store.Get("a"); ok && c.Name != "a" {
					t.Errorf("got %v", c)
				}
				store.List()
			}
		})
	}
	for i := range 50 {
		source.Modify(version(pki.x509Secret("a"), fmt.Sprint(i+2)))
	}
	for i := range 50 {
		expect(t, changes, change{"a", fmt.Sprint(i + 2), true})
	}
	cancel()
	readers.Wait()
}
