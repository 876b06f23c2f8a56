// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package peers

import (
	"context"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/ptr"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
)

// What the Lease of a replica contains, in addition to its renewal. All replicas have to agree on
// it.
const (
	leasePrefix = "cluster-gateway-peer-"
	labelPeer   = v1alpha1.GroupName + "/gateway-peer"

	annotationAddress  = labelPeer + "-address"
	annotationDraining = labelPeer + "-draining"
	annotationClusters = labelPeer + "-clusters"
)

// Run publishes the presence of this replica and follows that of the others, until ctx ends. Then
// it removes the Lease.
func (p *Peers) Run(ctx context.Context) error {
	var group sync.WaitGroup
	defer group.Wait()
	group.Go(func() { p.watch(ctx) })
	group.Go(func() { p.recheck(ctx) })
	p.publishUntil(ctx)
	return nil
}

// removeTimeout bounds the removal of the Lease.
const removeTimeout = 3 * time.Second

func (p *Peers) publishUntil(ctx context.Context) {
	ticker := p.cfg.Clock.NewTicker(renewInterval)
	defer ticker.Stop()
	for {
		p.publish(ctx)
		p.forget(ctx)
		select {
		case <-ctx.Done():
		case <-ticker.C():
		case <-p.changed:
			select {
			case <-ctx.Done():
			case <-p.cfg.Clock.After(publishDelay):
			}
		}
		if ctx.Err() != nil {
			break
		}
	}
	removeCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	if err := p.cfg.Client.CoordinationV1().Leases(p.cfg.Namespace).Delete(removeCtx, leasePrefix+p.cfg.ID, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		p.cfg.Logger.Info("Failed to remove the Lease of this replica. The others notice its absence later", "lease", leasePrefix+p.cfg.ID, "err", err)
	}
}

// publish writes the Lease of this replica. A failure is logged, and the next renewal repeats it.
func (p *Peers) publish(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, renewInterval)
	defer cancel()
	if err := p.write(ctx); err != nil && ctx.Err() == nil {
		p.cfg.Logger.Info("Failed to renew the Lease of this replica, will retry", "lease", leasePrefix+p.cfg.ID, "err", err)
	}
}

func (p *Peers) write(ctx context.Context) error {
	leases := p.cfg.Client.CoordinationV1().Leases(p.cfg.Namespace)
	want := p.record()
	var err error
	if p.lease != nil {
		want.ResourceVersion = p.lease.ResourceVersion
		if p.lease, err = leases.Update(ctx, want, metav1.UpdateOptions{}); !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			return p.written(err)
		}
		want.ResourceVersion = ""
	}
	p.lease, err = leases.Create(ctx, want, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) { // an answer was lost, or somebody else has changed it
		if p.lease, err = leases.Get(ctx, want.Name, metav1.GetOptions{}); err == nil {
			want.ResourceVersion = p.lease.ResourceVersion
			p.lease, err = leases.Update(ctx, want, metav1.UpdateOptions{})
		}
	}
	return p.written(err)
}

// written forgets a Lease that could not be written.
func (p *Peers) written(err error) error {
	if err != nil {
		p.lease = nil
	}
	return err
}

// record returns the Lease of this replica as it should be.
func (p *Peers) record() *coordinationv1.Lease {
	p.mu.RLock()
	defer p.mu.RUnlock()
	clusters := make([]string, 0, len(p.agents))
	for name := range p.agents {
		clusters = append(clusters, name)
	}
	return &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: p.cfg.Namespace, Name: leasePrefix + p.cfg.ID, Labels: map[string]string{labelPeer: "true"},
			Annotations: map[string]string{
				annotationAddress: p.cfg.Address, annotationDraining: strconv.FormatBool(p.draining),
				annotationClusters: newClusterSet(clusters).String(),
			},
		},
		Spec: coordinationv1.LeaseSpec{
			HolderIdentity: ptr.To(p.cfg.ID), LeaseDurationSeconds: ptr.To(int32(Timeout / time.Second)),
			RenewTime: ptr.To(metav1.NewMicroTime(p.cfg.Clock.Now())),
		},
	}
}

// forget deletes the Leases of replicas that have been away for long: they could not do it.
func (p *Peers) forget(ctx context.Context) {
	p.mu.RLock()
	stale := map[string]string{}
	for name, other := range p.others {
		if p.cfg.Clock.Now().Sub(other.seen) > forgetAfter {
			stale[name] = other.version
		}
	}
	p.mu.RUnlock()
	for name, version := range stale {
		// Without the version, a replica that has just come back would lose its Lease.
		err := p.cfg.Client.CoordinationV1().Leases(p.cfg.Namespace).Delete(ctx, name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{ResourceVersion: &version}})
		if err != nil && !apierrors.IsNotFound(err) && ctx.Err() == nil {
			p.cfg.Logger.Info("Failed to delete the Lease of a replica that is away", "lease", name, "err", err)
		}
	}
}

// watch follows the Leases of the other replicas.
func (p *Peers) watch(ctx context.Context) {
	leases := p.cfg.Client.CoordinationV1().Leases(p.cfg.Namespace)
	lw := cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			options.LabelSelector = labelPeer
			return leases.List(ctx, options)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.LabelSelector = labelPeer
			return leases.Watch(ctx, options)
		},
	}, p.cfg.Client)
	cache.NewReflectorWithOptions(lw, &coordinationv1.Lease{}, leaseHandler{p}, cache.ReflectorOptions{Name: "peers"}).RunWithContext(ctx)
}

// leaseHandler receives the changes that a reflector finds.
type leaseHandler struct{ peers *Peers }

var _ cache.ReflectorStore = leaseHandler{}

func (h leaseHandler) Add(obj any) error { return h.Update(obj) }
func (h leaseHandler) Update(obj any) error {
	if lease, ok := obj.(*coordinationv1.Lease); ok {
		h.peers.mu.Lock()
		defer h.peers.mu.Unlock()
		h.peers.seeLocked(lease)
	}
	return nil
}
func (h leaseHandler) Delete(obj any) error {
	if lease, ok := obj.(*coordinationv1.Lease); ok {
		h.peers.mu.Lock()
		defer h.peers.mu.Unlock()
		delete(h.peers.others, lease.Name)
	}
	return nil
}
func (h leaseHandler) Replace(list []any, _ string) error {
	h.peers.mu.Lock()
	defer h.peers.mu.Unlock()
	listed := map[string]bool{}
	for _, obj := range list {
		if lease, ok := obj.(*coordinationv1.Lease); ok {
			listed[lease.Name] = true
			h.peers.seeLocked(lease)
		}
	}
	for name := range h.peers.others {
		if !listed[name] {
			delete(h.peers.others, name)
		}
	}
	h.peers.synced = true
	return nil
}
func (h leaseHandler) Resync() error { return nil }

// seeLocked records a Lease. p.mu is locked.
func (p *Peers) seeLocked(lease *coordinationv1.Lease) {
	if lease.Name == leasePrefix+p.cfg.ID || lease.Labels[labelPeer] == "" { // fake clients ignore selectors of watches
		return
	}
	if before := p.others[lease.Name]; before != nil && before.version == lease.ResourceVersion && lease.ResourceVersion != "" {
		return // listed again, and not renewed
	}
	clusters, err := parseClusterSet(lease.Annotations[annotationClusters])
	if err != nil {
		p.cfg.Logger.Info("Ignoring the clusters in the invalid Lease of a replica", "lease", lease.Name, "err", err)
		clusters = nil
	}
	other := &peer{
		address: lease.Annotations[annotationAddress], draining: lease.Annotations[annotationDraining] == "true",
		clusters: clusters, version: lease.ResourceVersion, seen: p.cfg.Clock.Now(), load: &atomic.Int64{},
	}
	if before := p.others[lease.Name]; before != nil {
		other.failed, other.load = before.failed && before.address == other.address, before.load
	}
	p.others[lease.Name] = other
}
