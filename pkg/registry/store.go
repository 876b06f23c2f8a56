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

// Store contains all clusters in parsed form. It follows the Secrets in one namespace, parses each
// Secret once per change, and does not keep the Secret. It is safe for concurrent use, also before
// and after Run. After Run, its content no longer changes.
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

// NewStore returns a Store that is empty until Run. A Secret that loses its label is removed from
// the Store.
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
	// A reflector is enough, because there is only one consumer. A shared informer would also keep
	// every object and a queue of changes.
	s.reflector = cache.NewReflectorWithOptions(lw, &corev1.Secret{}, (*secretHandler)(s), cache.ReflectorOptions{Name: "cluster-secrets"})
	return s
}

// Subscribe calls onChange for each change, after the Store holds it. A nil Cluster means that the
// cluster was removed. All calls come from one goroutine, in the order of the changes, so onChange
// must not block for long. Subscribers are called in the order in which they subscribed. Subscribe
// must not be called after Run.
func (s *Store) Subscribe(onChange func(name string, c *cluster.Cluster)) {
	s.subscribers = append(s.subscribers, onChange)
}

// Run follows the Secrets until ctx is done. Then it stops all its goroutines and returns nil. A
// Store can run only once.
func (s *Store) Run(ctx context.Context) error {
	if s.started.Swap(true) {
		return errors.New("the cluster store is already running or has run")
	}
	s.reflector.RunWithContext(ctx)
	return nil
}

// HasSynced reports whether the Store has read the first list of all clusters and has called the
// subscribers for them.
func (s *Store) HasSynced() bool { return s.synced.Load() }

// Get returns the cluster. It may be invalid.
func (s *Store) Get(name string) (*cluster.Cluster, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	c, ok := s.clusters[name]
	return c, ok
}

// List returns all clusters in a new slice, sorted by name.
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

// set stores a cluster, or deletes it if c is nil. Only the goroutine of the reflector changes the
// map.
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

// secretHandler receives the changes that the reflector of a Store finds, always from the goroutine
// of Run.
type secretHandler Store

var _ cache.ReflectorStore = (*secretHandler)(nil)

// Add handles a new Secret.
func (s *secretHandler) Add(obj any) error { return s.Update(obj) }

// Update handles a changed Secret.
func (s *secretHandler) Update(obj any) error {
	if secret, ok := obj.(*corev1.Secret); ok {
		(*Store)(s).set(secret.Name, cluster.Parse(secret, s.opts))
	}
	return nil
}

// Delete handles a Secret that was deleted or has lost its label.
func (s *secretHandler) Delete(obj any) error {
	if secret, ok := obj.(*corev1.Secret); ok {
		(*Store)(s).set(secret.Name, nil)
	}
	return nil
}

// Replace handles a new list of all Secrets, at the start and when the watch could not be resumed.
// It does not parse unchanged Secrets again. It handles deletions first, so that the resources of a
// removed cluster are free before another cluster needs them.
func (s *secretHandler) Replace(list []any, _ string) error {
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

// has reports whether the Store contains the cluster at the resource version.
func (s *Store) has(name string, uid types.UID, resourceVersion string) bool {
	c, ok := s.Get(name)
	return ok && c.UID == uid && c.ResourceVersion == resourceVersion && resourceVersion != ""
}

// Resync does nothing, because there is no queue.
func (s *secretHandler) Resync() error { return nil }
