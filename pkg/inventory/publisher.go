// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package inventory

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/dynamic"
	"k8s.io/klog/v2"

	"github.com/oam-dev/cluster-gateway/pkg/cluster"
)

// Times of a Publisher.
const (
	// DefaultInterval is how often all profiles are read, so that changes by others are undone.
	DefaultInterval = time.Minute
	// retryAfter is when a profile that could not be written is tried again.
	retryAfter = 5 * time.Second
	// pageSize is how many profiles are read at once.
	pageSize = 500
)

// Clusters are the registered clusters.
type Clusters interface {
	Get(name string) (*cluster.Cluster, bool)
	List() []*cluster.Cluster
}

// Config is what a Publisher needs. All fields but Interval are required.
type Config struct {
	// Client is a client of the hub.
	Client dynamic.Interface
	// Namespace is the namespace of the profiles.
	Namespace string
	// Manager is the name of this gateway in spec.clusterManager.
	Manager string
	// Selector selects clusters by the labels of their Secrets.
	Selector labels.Selector
	Clusters Clusters
	// Access returns how consumers reach the gateway. It must not block.
	Access func() (Access, error)
	// Interval is how often all profiles are read. 0 means DefaultInterval.
	Interval time.Duration
	Logger   klog.Logger
}

// Publisher keeps the profiles of the registered clusters up to date. It is safe for concurrent
// use.
type Publisher struct {
	config   Config
	profiles dynamic.ResourceInterface
	// wake has a value if changed is not empty.
	wake chan struct{}

	mu sync.Mutex
	// changed are the names of the clusters that have changed. It is nil while Run does not run.
	changed map[string]bool

	// reported are the errors that were logged last, by cluster. Only Run uses it. The empty name
	// stands for all clusters.
	reported map[string]string
}

// NewPublisher returns a Publisher that does nothing before Run.
func NewPublisher(config Config) *Publisher {
	if config.Interval == 0 {
		config.Interval = DefaultInterval
	}
	return &Publisher{
		config: config, profiles: config.Client.Resource(Resource()).Namespace(config.Namespace),
		wake: make(chan struct{}, 1), reported: map[string]string{},
	}
}

// ClusterChanged is to be called after a cluster has changed. It does not block.
func (p *Publisher) ClusterChanged(name string, _ *cluster.Cluster) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.changed == nil {
		return // Run begins with all clusters
	}
	p.changed[name] = true
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// take returns the clusters that have changed since the last call.
func (p *Publisher) take() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	names := slices.Sorted(maps.Keys(p.changed))
	p.changed = map[string]bool{}
	return names
}

// Run keeps the profiles up to date until ctx ends. Only one replica must do this. Profiles stay
// when it ends.
func (p *Publisher) Run(ctx context.Context) error {
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.changed = nil
	}()
	var nextAll time.Time
	failed := map[string]bool{}
	for {
		names := p.take()
		if now := time.Now(); !now.Before(nextAll) {
			clear(failed)
			nextAll = now.Add(p.config.Interval)
			if err := p.syncAll(ctx, failed); p.report("", err) {
				nextAll = now.Add(min(retryAfter, p.config.Interval))
			}
		} else {
			for _, name := range slices.Compact(slices.Sorted(slices.Values(append(names, slices.Collect(maps.Keys(failed))...)))) {
				p.sync(ctx, name, failed)
			}
		}
		wait := time.Until(nextAll)
		if len(failed) > 0 {
			wait = min(wait, retryAfter)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-p.wake:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// syncAll compares all profiles with all clusters. It returns an error if it cannot read the
// profiles. failed gets the names of the clusters whose profile could not be written.
func (p *Publisher) syncAll(ctx context.Context, failed map[string]bool) error {
	seen := map[string]bool{}
	options := metav1.ListOptions{LabelSelector: labelClusterManager + "=" + p.config.Manager, Limit: pageSize}
	for {
		list, err := p.profiles.List(ctx, options)
		if err != nil {
			return p.explain(err)
		}
		for i := range list.Items {
			name := list.Items[i].GetName()
			seen[name] = true
			p.result(ctx, name, p.reconcile(ctx, name, &list.Items[i]), failed)
		}
		if options.Continue = list.GetContinue(); options.Continue == "" {
			break
		}
	}
	for _, c := range p.config.Clusters.List() {
		if !seen[c.Name] && p.selects(c) && ctx.Err() == nil {
			p.sync(ctx, c.Name, failed)
		}
	}
	return nil
}

// explain adds to an error what to do.
func (p *Publisher) explain(err error) error {
	switch {
	case meta.IsNoMatchError(err), apierrors.IsNotFound(err):
		return fmt.Errorf("the hub has no ClusterProfiles; install the CustomResourceDefinition of sigs.k8s.io/cluster-inventory-api: %w", err)
	case apierrors.IsForbidden(err):
		return fmt.Errorf("apply the component manifests/gateway/clusterprofiles, or set clusterProfiles.namespace of the chart: %w", err)
	default:
		return err
	}
}

// sync reads and writes the profile of one cluster.
func (p *Publisher) sync(ctx context.Context, name string, failed map[string]bool) {
	have, err := p.profiles.Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		have, err = nil, nil
	case err != nil:
		err = p.explain(err)
	}
	if err == nil {
		err = p.reconcile(ctx, name, have)
	}
	p.result(ctx, name, err, failed)
}

// errNotOurs is that a profile exists that the gateway did not create. It is looked at again only
// with all others, because somebody has to act.
var errNotOurs = errors.New("the gateway did not create it")

// result records the outcome for one cluster.
func (p *Publisher) result(ctx context.Context, name string, err error, failed map[string]bool) {
	delete(failed, name)
	if ctx.Err() == nil && p.report(name, err) && !errors.Is(err, errNotOurs) {
		failed[name] = true
	}
}

// report logs an error, unless it is the same as before. It reports whether there is one.
func (p *Publisher) report(name string, err error) bool {
	if err == nil || errors.Is(err, context.Canceled) {
		delete(p.reported, name)
		return false
	}
	if !apierrors.IsConflict(err) && p.reported[name] != err.Error() {
		p.reported[name] = err.Error()
		p.config.Logger.Info("Could not write ClusterProfiles", "namespace", p.config.Namespace, "cluster", name, "err", err.Error())
	}
	return true
}

func (p *Publisher) selects(c *cluster.Cluster) bool {
	return p.config.Selector.Matches(labels.Set(c.Labels))
}

// reconcile writes the profile of a cluster, or deletes it. have is the profile that exists, or
// nil.
func (p *Publisher) reconcile(ctx context.Context, name string, have *unstructured.Unstructured) error {
	c, registered := p.config.Clusters.Get(name)
	wanted := registered && p.selects(c)
	switch {
	case have == nil && !wanted:
		return nil
	case have != nil && !owned(have, p.config.Manager):
		if !wanted {
			return nil
		}
		return fmt.Errorf("the ClusterProfile %s/%s exists, its cluster manager is %q, and %w: delete or rename it", p.config.Namespace, name, clusterManager(have), errNotOurs)
	case !wanted:
		return p.delete(ctx, have)
	case have != nil && have.GetDeletionTimestamp() != nil:
		return nil // it is created again when it is gone
	}
	access, err := p.config.Access()
	if err != nil {
		return err
	}
	return p.write(ctx, New(clusterOf(c), access, p.config.Namespace, p.config.Manager), have)
}

// clusterOf returns what a profile says about a cluster.
func clusterOf(c *cluster.Cluster) Cluster {
	return Cluster{
		Name: c.Name, UID: c.UID, Labels: c.Labels, Version: c.Health.Version, Route: string(c.Route),
		Identity: string(c.Identity.Mode), Ready: c.Ready(),
	}
}

// write creates or updates a profile.
func (p *Publisher) write(ctx context.Context, want *Profile, have *unstructured.Unstructured) error {
	if have == nil {
		o, err := toObject(want)
		if err != nil {
			return err
		}
		delete(o.Object, "status")
		if have, err = p.profiles.Create(ctx, o, metav1.CreateOptions{FieldManager: managedBy}); err != nil {
			if apierrors.IsNotFound(err) {
				return fmt.Errorf("create the namespace %s, or the CustomResourceDefinition of sigs.k8s.io/cluster-inventory-api: %w", p.config.Namespace, err)
			}
			return err
		}
		p.config.Logger.V(2).Info("Created the ClusterProfile", "cluster", want.Metadata.Name)
	} else {
		next, changed, err := mergeObject(have, want)
		if err != nil {
			return err
		}
		if changed {
			if have, err = p.profiles.Update(ctx, next, metav1.UpdateOptions{FieldManager: managedBy}); err != nil {
				return err
			}
		}
	}
	next, changed, err := mergeStatus(have, want)
	if err != nil || !changed {
		return err
	}
	_, err = p.profiles.UpdateStatus(ctx, next, metav1.UpdateOptions{FieldManager: managedBy})
	return err
}

// delete deletes exactly the profile that was read: not one that somebody else has created or
// changed since.
func (p *Publisher) delete(ctx context.Context, o *unstructured.Unstructured) error {
	uid, resourceVersion := o.GetUID(), o.GetResourceVersion()
	err := p.profiles.Delete(ctx, o.GetName(), metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid, ResourceVersion: &resourceVersion}})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err == nil {
		p.config.Logger.V(2).Info("Deleted the ClusterProfile", "cluster", o.GetName())
	}
	return err
}
