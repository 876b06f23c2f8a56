// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package clusterapi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/internal/events"
)

// DefaultGrace is how long a kubeconfig may be gone before its cluster is unregistered. Deleting
// the Secret is how Cluster API is made to write a new one, which takes a few seconds.
const DefaultGrace = 30 * time.Second

// Clusters are the registered clusters.
type Clusters interface {
	Get(name string) (*cluster.Cluster, bool)
	List() []*cluster.Cluster
}

// Config is what a Registrar needs. All fields but Grace are required.
type Config struct {
	// Client is a client of the hub.
	Client kubernetes.Interface
	// SecretNamespace is the namespace of the Secrets of clusters.
	SecretNamespace string
	// Namespaces are those with kubeconfigs of Cluster API. Selector selects them by the labels of
	// their Secrets.
	Namespaces []string
	Selector   labels.Selector
	// Clusters are the registered clusters, and Parse is how the gateway parses their Secrets.
	Clusters Clusters
	Parse    cluster.ParseOptions
	// Grace is how long a kubeconfig may be gone. 0 means DefaultGrace.
	Grace  time.Duration
	Logger klog.Logger
}

// Registrar registers the clusters of Cluster API. It is safe for concurrent use.
type Registrar struct {
	config Config

	mu sync.Mutex
	// queue has the names of clusters to compare. It is nil while Run does not run.
	queue workqueue.TypedRateLimitingInterface[string]

	// The other fields are used by Run alone.

	// kubeconfigs follow the Secrets in one namespace each.
	kubeconfigs map[string]cache.SharedIndexInformer
	// goneSince is when the kubeconfig of a registered cluster was first missed.
	goneSince map[string]time.Time
	// refused is why a kubeconfig is not registered, by the name of the cluster.
	refused map[string]string
}

// NewRegistrar returns a Registrar that does nothing before Run.
func NewRegistrar(config Config) *Registrar {
	config.Grace = cmp.Or(config.Grace, DefaultGrace)
	return &Registrar{config: config}
}

// ClusterChanged is to be called after a cluster has changed. It does not block.
func (r *Registrar) ClusterChanged(name string, _ *cluster.Cluster) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.queue != nil { // Run begins with all clusters
		r.queue.Add(name)
	}
}

// Run keeps the clusters registered until ctx ends. Only one replica must do this. The clusters
// stay registered when it ends.
func (r *Registrar) Run(ctx context.Context) error {
	queue := workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](100*time.Millisecond, time.Minute))
	r.mu.Lock()
	r.queue = queue
	r.mu.Unlock()
	r.kubeconfigs, r.goneSince, r.refused = map[string]cache.SharedIndexInformer{}, map[string]time.Time{}, map[string]string{}
	var running sync.WaitGroup
	defer running.Wait()
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.queue = nil
		queue.ShutDown()
	}()
	for _, namespace := range r.config.Namespaces {
		informer, err := r.follow(namespace, queue)
		if err != nil {
			return err
		}
		r.kubeconfigs[namespace] = informer
	}
	for _, informer := range r.kubeconfigs {
		running.Go(func() { informer.RunWithContext(ctx) })
		running.Go(func() {
			// Clusters whose kubeconfig was deleted while nobody followed it are known from their
			// own Secrets.
			if cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
				for _, c := range r.config.Clusters.List() {
					r.ClusterChanged(c.Name, c)
				}
			}
		})
	}
	defer context.AfterFunc(ctx, queue.ShutDown)()
	for {
		name, shutdown := queue.Get()
		if shutdown {
			return nil
		}
		r.next(ctx, queue, name)
	}
}

// follow returns an informer of the kubeconfigs in a namespace.
func (r *Registrar) follow(namespace string, queue workqueue.TypedRateLimitingInterface[string]) (cache.SharedIndexInformer, error) {
	secrets := r.config.Client.CoreV1().Secrets(namespace)
	selector := labelClusterName
	if s := r.config.Selector.String(); s != "" {
		selector += "," + s
	}
	set := func(o metav1.ListOptions) metav1.ListOptions {
		o.LabelSelector, o.FieldSelector = selector, "type="+string(secretType)
		return o
	}
	lw := cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return secrets.List(ctx, set(o))
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return secrets.Watch(ctx, set(o))
		},
	}, r.config.Client)
	informer := cache.NewSharedIndexInformer(lw, &corev1.Secret{}, 0, nil)
	changed := func(o any) {
		if tombstone, ok := o.(cache.DeletedFinalStateUnknown); ok {
			o = tombstone.Obj
		}
		if secret, ok := o.(*corev1.Secret); ok {
			if name, ok := ClusterName(secret); ok {
				queue.Add(name)
			}
		}
	}
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: changed, UpdateFunc: func(_, o any) { changed(o) }, DeleteFunc: changed})
	return informer, err
}

// next compares one cluster, and tries again later if that fails.
func (r *Registrar) next(ctx context.Context, queue workqueue.TypedRateLimitingInterface[string], name string) {
	defer queue.Done(name)
	again, err := r.reconcile(ctx, name)
	var refusal *refusalError
	switch {
	case errors.As(err, &refusal): // until something changes
		r.report(ctx, name, refusal)
		queue.Forget(name)
	case err != nil:
		if ctx.Err() == nil {
			r.config.Logger.Info("Failed to register a cluster of Cluster API, will retry", "cluster", name, "err", err)
		}
		queue.AddRateLimited(name)
	default:
		delete(r.refused, name)
		queue.Forget(name)
		if again > 0 {
			queue.AddAfter(name, again)
		}
	}
}

// refusalError is why a kubeconfig is not registered. Its owner has to act.
type refusalError struct{ reason, message string }

func (e *refusalError) Error() string { return e.message }

// report writes an Event when a refusal is new.
func (r *Registrar) report(ctx context.Context, name string, refusal *refusalError) {
	if r.refused[name] == refusal.message {
		return
	}
	r.config.Logger.Info("A kubeconfig of Cluster API is not registered", "cluster", name, "reason", refusal.reason, "message", refusal.message)
	err := events.Write(ctx, r.config.Client.CoreV1().Events(events.Namespace), events.Event{
		Cluster: name, Warning: true, Reason: refusal.reason, Message: refusal.message, Time: time.Now(),
	})
	if err != nil {
		r.config.Logger.Info("Failed to write an Event", "cluster", name, "err", err)
		return
	}
	r.refused[name] = refusal.message
}

// sources returns the kubeconfigs of a cluster, the oldest first. More than one means that clusters
// in several namespaces have the same name.
func (r *Registrar) sources(name string) []*corev1.Secret {
	var all []*corev1.Secret
	for namespace, informer := range r.kubeconfigs {
		o, exists, err := informer.GetStore().GetByKey(namespace + "/" + name + suffix)
		if err != nil || !exists {
			continue
		}
		if secret, ok := o.(*corev1.Secret); ok {
			if n, ok := ClusterName(secret); ok && n == name {
				all = append(all, secret)
			}
		}
	}
	slices.SortFunc(all, func(a, b *corev1.Secret) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Namespace, b.Namespace))
	})
	return all
}

// sourceOf returns the kubeconfig that a Secret was made from. It returns false if the Secret is
// not the Registrar's, or the kubeconfig is in a namespace that it does not follow.
func (r *Registrar) sourceOf(current *corev1.Secret) (source cache.ObjectName, ours bool) {
	if current == nil || current.Labels[v1alpha1.LabelManagedBy] != v1alpha1.ManagedByClusterAPI {
		return cache.ObjectName{}, false
	}
	source, err := cache.ParseObjectName(current.Annotations[v1alpha1.AnnotationClusterAPISecret])
	return source, err == nil && r.kubeconfigs[source.Namespace] != nil
}

func taken(source *corev1.Secret, format string, args ...any) *refusalError {
	return &refusalError{"NameTaken", fmt.Sprintf("the kubeconfig in Secret %s/%s is not registered: ", source.Namespace, source.Name) + fmt.Sprintf(format, args...)}
}
