// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
)

// Store holds every cluster, parsed, and follows the Secrets of one namespace. Each Secret is parsed once per change and not
// kept. Its methods may be called concurrently, also before and after Run, when it holds what it held last.
type Store struct {
	reflector *cache.Reflector
	opts      cluster.ParseOptions
	// subscribers does not change once Run has started.
	subscribers []func(name string, c *cluster.Cluster)

	started atomic.Bool
	synced  atomic.Bool

	mu       sync.RWMutex
	clusters map[string]*cluster.Cluster
}

// NewStore returns a Store that is empty until Run. A Secret that loses its label is removed from the Store.
func NewStore(client kubernetes.Interface, namespace string, opts cluster.ParseOptions) *Store {
	s := &Store{opts: opts, clusters: map[string]*cluster.Cluster{}}
	secrets := client.CoreV1().Secrets(namespace)
	lw := cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			options.LabelSelector = v1alpha1.LabelCredentialType
			return secrets.List(ctx, options)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.LabelSelector = v1alpha1.LabelCredentialType
			return secrets.Watch(ctx, options)
		},
	}, client)
	// A reflector on its own, and not a shared informer: there is one consumer, and between the two an informer keeps every
	// object and a queue of changes.
	s.reflector = cache.NewReflectorWithOptions(lw, &corev1.Secret{}, (*sink)(s), cache.ReflectorOptions{Name: "cluster-secrets"})
	return s
}

// Subscribe calls onChange for each change, after the Store holds it. A nil Cluster means that the cluster was removed.
// All calls come from one goroutine, in the order of the changes, so onChange must not block for long. Subscribers are
// called in the order in which they subscribed. Subscribe must not be called after Run.
func (s *Store) Subscribe(onChange func(name string, c *cluster.Cluster)) {
	s.subscribers = append(s.subscribers, onChange)
}

// Run follows the Secrets until ctx is done, and then returns nil, having stopped what it started. A Store runs once.
func (s *Store) Run(ctx context.Context) error {
	if s.started.Swap(true) {
		return errors.New("the cluster store is already running or has run")
	}
	s.reflector.RunWithContext(ctx)
	return nil
}

// HasSynced is whether the Store has held, at some time, all clusters there were; the subscribers have been called for them.
func (s *Store) HasSynced() bool { return s.synced.Load() }

// Get returns the cluster, which may be an invalid one.
func (s *Store) Get(name string) (*cluster.Cluster, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	c, ok := s.clusters[name]
	return c, ok
}

// List returns all clusters by name. The slice is the caller's.
func (s *Store) List() []*cluster.Cluster {
	s.mu.RLock()
	list := make([]*cluster.Cluster, 0, len(s.clusters))
	for _, c := range s.clusters {
		list = append(list, c)
	}
	s.mu.RUnlock()
	slices.SortFunc(list, func(a, b *cluster.Cluster) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// set takes a change over; c is nil for a deletion. Only the reflector's goroutine changes the map.
func (s *Store) set(name string, c *cluster.Cluster) {
	s.mu.Lock()
	if c == nil {
		delete(s.clusters, name)
	} else {
		s.clusters[name] = c
	}
	s.mu.Unlock()
	for _, onChange := range s.subscribers {
		onChange(name, c)
	}
}

// sink is the side of a Store that the reflector writes to, always from the goroutine of Run.
type sink Store

var _ cache.ReflectorStore = (*sink)(nil)

// Add takes over a Secret that is new to the selection.
func (s *sink) Add(obj any) error { return s.Update(obj) }

// Update takes over a Secret.
func (s *sink) Update(obj any) error {
	if secret, ok := obj.(*corev1.Secret); ok {
		(*Store)(s).set(secret.Name, cluster.Parse(secret, s.opts))
	}
	return nil
}

// Delete takes over that a Secret is gone or has lost its label.
func (s *sink) Delete(obj any) error {
	if secret, ok := obj.(*corev1.Secret); ok {
		(*Store)(s).set(secret.Name, nil)
	}
	return nil
}

// Replace takes over a whole list, at the start and whenever the watch could not be resumed. What has not changed since is not
// parsed again. Deletions come first, so that what a removed cluster holds is free before another takes its place.
func (s *sink) Replace(list []any, _ string) error {
	store := (*Store)(s)
	listed := make(map[string]*corev1.Secret, len(list))
	for _, obj := range list {
		if secret, ok := obj.(*corev1.Secret); ok {
			listed[secret.Name] = secret
		}
	}
	for _, old := range store.List() {
		if _, ok := listed[old.Name]; !ok {
			store.set(old.Name, nil)
		}
	}
	for _, obj := range list {
		secret, ok := obj.(*corev1.Secret)
		if !ok || store.has(secret.Name, secret.UID, secret.ResourceVersion) {
			continue
		}
		store.set(secret.Name, cluster.Parse(secret, s.opts))
	}
	s.synced.Store(true)
	return nil
}

// has is whether the Store holds the cluster as it was at the resource version.
func (s *Store) has(name string, uid types.UID, resourceVersion string) bool {
	c, ok := s.Get(name)
	return ok && c.UID == uid && c.ResourceVersion == resourceVersion && resourceVersion != ""
}

// Resync has nothing to do: there is no queue.
func (s *sink) Resync() error { return nil }
