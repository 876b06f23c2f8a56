// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package peers

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"strings"
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
//
// The clusters are in a second Lease, which is written only when they change: with 10,000 clusters
// they take 54 KB, and the first one is written every few seconds. A replica of an earlier version
// reads the annotation of the first Lease, so the clusters are there, too, while one is present.
const (
	leasePrefix = "cluster-gateway-peer-"
	labelPeer   = v1alpha1.GroupName + "/gateway-peer"

	annotationAddress  = labelPeer + "-address"
	annotationDraining = labelPeer + "-draining"
	annotationClusters = labelPeer + "-clusters"
	// annotationForm is formContent for a replica that writes and reads the second Lease.
	annotationForm = labelPeer + "-form"
	formContent    = "2"

	// contentSuffix follows the name of the Lease in that of the second one.
	contentSuffix = "-clusters"
	// labelContent is the label of the second Lease. It must not have labelPeer, with which earlier
	// versions find replicas.
	labelContent = labelPeer + "-content"
)

// Run publishes the presence of this replica and follows that of the others, until ctx ends. Then
// it removes the Lease.
func (p *Peers) Run(ctx context.Context) error {
	var group sync.WaitGroup
	defer group.Wait()
	group.Go(func() { p.watch(ctx, labelPeer, leaseHandler{p}) })
	group.Go(func() { p.watch(ctx, labelContent, contentHandler{p}) })
	group.Go(func() { p.recheck(ctx) })
	p.publishUntil(ctx)
	return nil
}

// removeTimeout bounds the removal of the Lease.
const removeTimeout = 3 * time.Second

func (p *Peers) publishUntil(ctx context.Context) {
	ticker := p.cfg.Clock.NewTicker(renewInterval)
	defer ticker.Stop()
	for renew := true; ; {
		p.publish(ctx, renew)
		if renew {
			p.forget(ctx)
		}
		select {
		case <-ctx.Done():
		case <-ticker.C():
			renew = true
		case <-p.changed:
			renew = false
			select {
			case <-ctx.Done():
			case <-p.cfg.Clock.After(p.publishDelay()):
			}
			select { // changes do not delay the renewal
			case <-ticker.C():
				renew = true
			default:
			}
		}
		if ctx.Err() != nil {
			break
		}
	}
	removeCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	for _, name := range []string{p.leaseName(), p.leaseName() + contentSuffix} {
		if err := p.cfg.Client.CoordinationV1().Leases(p.cfg.Namespace).Delete(removeCtx, name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			p.cfg.Logger.Info("Failed to remove a Lease of this replica. The others notice its absence later", "lease", name, "err", err)
		}
	}
}

func (p *Peers) leaseName() string { return leasePrefix + p.cfg.ID }

// publishDelay returns how long a change waits for others, so that they are written together. The
// more there is to write, the longer.
func (p *Peers) publishDelay() time.Duration {
	if p.earlierSeen.Swap(false) {
		return 0 // it knows no cluster of this replica yet
	}
	if p.content == nil {
		return publishDelay
	}
	return min(publishDelay+time.Duration(len(p.content.Annotations[annotationClusters]))*time.Second/publishRate, renewInterval)
}

// publish writes the Leases of this replica: the first one if it is to be renewed or has changed,
// and the second one if it has changed. A failure is logged, and the next renewal repeats it.
func (p *Peers) publish(ctx context.Context, renew bool) {
	ctx, cancel := context.WithTimeout(ctx, renewInterval)
	defer cancel()
	lease, content := p.record()
	var err error
	if renew || p.lease == nil || !maps.Equal(lease.Annotations, p.lease.Annotations) {
		if p.lease, err = p.write(ctx, p.lease, lease); err != nil && ctx.Err() == nil {
			p.cfg.Logger.Info("Failed to renew the Lease of this replica, will retry", "lease", lease.Name, "err", err)
		}
	}
	if p.lease == nil {
		return
	}
	// Without a replica, the second Lease is deleted with the first one.
	content.OwnerReferences = []metav1.OwnerReference{{
		APIVersion: coordinationv1.SchemeGroupVersion.String(), Kind: "Lease", Name: p.lease.Name, UID: p.lease.UID,
	}}
	if p.content != nil && maps.Equal(content.Annotations, p.content.Annotations) && slices.Equal(content.OwnerReferences, p.content.OwnerReferences) {
		return
	}
	if p.content, err = p.write(ctx, p.content, content); err != nil && ctx.Err() == nil {
		p.cfg.Logger.Info("Failed to write the clusters of this replica, will retry", "lease", content.Name, "err", err)
	}
}

// write writes a Lease. before is what was last written, or nil if that is not known. It returns
// what it has written, or nil.
func (p *Peers) write(ctx context.Context, before, want *coordinationv1.Lease) (*coordinationv1.Lease, error) {
	leases := p.cfg.Client.CoordinationV1().Leases(p.cfg.Namespace)
	if before != nil {
		want.ResourceVersion = before.ResourceVersion
		lease, err := leases.Update(ctx, want, metav1.UpdateOptions{})
		if !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			return written(lease, err)
		}
		want.ResourceVersion = ""
	}
	lease, err := leases.Create(ctx, want, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) { // an answer was lost, or somebody else has changed it
		if lease, err = leases.Get(ctx, want.Name, metav1.GetOptions{}); err == nil {
			want.ResourceVersion = lease.ResourceVersion
			lease, err = leases.Update(ctx, want, metav1.UpdateOptions{})
		}
	}
	return written(lease, err)
}

// written forgets a Lease that could not be written.
func written(lease *coordinationv1.Lease, err error) (*coordinationv1.Lease, error) {
	if err != nil {
		return nil, err
	}
	return lease, nil
}

// record returns the Leases of this replica as they should be.
func (p *Peers) record() (lease, content *coordinationv1.Lease) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	names := make([]string, 0, len(p.agents))
	for name := range p.agents {
		names = append(names, name)
	}
	clusters := newClusterSet(names).String()
	lease = &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: p.cfg.Namespace, Name: p.leaseName(), Labels: map[string]string{labelPeer: "true"},
			Annotations: map[string]string{
				annotationAddress: p.cfg.Address, annotationDraining: strconv.FormatBool(p.draining), annotationForm: formContent,
			},
		},
		Spec: coordinationv1.LeaseSpec{
			HolderIdentity: ptr.To(p.cfg.ID), LeaseDurationSeconds: ptr.To(int32(Timeout / time.Second)),
			RenewTime: ptr.To(metav1.NewMicroTime(p.cfg.Clock.Now())),
		},
	}
	now := p.cfg.Clock.Now()
	for _, other := range p.others {
		if other.earlier && other.present(now) {
			lease.Annotations[annotationClusters] = clusters
		}
	}
	return lease, &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: p.cfg.Namespace, Name: p.leaseName() + contentSuffix, Labels: map[string]string{labelContent: "true"},
			Annotations: map[string]string{annotationClusters: clusters},
		},
		Spec: coordinationv1.LeaseSpec{HolderIdentity: ptr.To(p.cfg.ID)},
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
		if err == nil || apierrors.IsNotFound(err) { // the hub does it, too, but later
			_ = p.cfg.Client.CoordinationV1().Leases(p.cfg.Namespace).Delete(ctx, name+contentSuffix, metav1.DeleteOptions{})
		}
	}
}

// watch follows the Leases of the other replicas that have a label.
func (p *Peers) watch(ctx context.Context, label string, store cache.ReflectorStore) {
	leases := p.cfg.Client.CoordinationV1().Leases(p.cfg.Namespace)
	lw := cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			options.LabelSelector = label
			return leases.List(ctx, options)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.LabelSelector = label
			return leases.Watch(ctx, options)
		},
	}, p.cfg.Client)
	cache.NewReflectorWithOptions(lw, &coordinationv1.Lease{}, store, cache.ReflectorOptions{Name: "peers"}).RunWithContext(ctx)
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
	if lease.Name == p.leaseName() || lease.Labels[labelPeer] == "" { // fake clients ignore selectors of watches
		return
	}
	before := p.others[lease.Name]
	if before != nil && before.version == lease.ResourceVersion && lease.ResourceVersion != "" {
		return // listed again, and not renewed
	}
	earlier := lease.Annotations[annotationForm] != formContent
	clusters, known := p.contents[lease.Name]
	if earlier || !known {
		clusters = p.parse(lease)
	}
	if earlier && (before == nil || !before.earlier) {
		p.earlierSeen.Store(true)
		p.wake()
	}
	other := &peer{
		address: lease.Annotations[annotationAddress], draining: lease.Annotations[annotationDraining] == "true",
		clusters: clusters, earlier: earlier, version: lease.ResourceVersion, seen: p.cfg.Clock.Now(), load: &atomic.Int64{},
	}
	if before != nil {
		other.failed, other.load = before.failed && before.address == other.address, before.load
	}
	p.others[lease.Name] = other
}

// parse returns the clusters in a Lease.
func (p *Peers) parse(lease *coordinationv1.Lease) clusterSet {
	clusters, err := parseClusterSet(lease.Annotations[annotationClusters])
	if err != nil {
		p.cfg.Logger.Info("Ignoring the clusters in the invalid Lease of a replica", "lease", lease.Name, "err", err)
		return nil
	}
	return clusters
}

// contentHandler receives the changes of the second Leases that a reflector finds.
type contentHandler struct{ peers *Peers }

var _ cache.ReflectorStore = contentHandler{}

func (h contentHandler) Add(obj any) error { return h.Update(obj) }
func (h contentHandler) Update(obj any) error {
	if lease, ok := obj.(*coordinationv1.Lease); ok {
		h.peers.mu.Lock()
		defer h.peers.mu.Unlock()
		h.peers.seeContentLocked(lease)
	}
	return nil
}
func (h contentHandler) Delete(obj any) error {
	if lease, ok := obj.(*coordinationv1.Lease); ok && lease.Labels[labelContent] != "" {
		h.peers.mu.Lock()
		defer h.peers.mu.Unlock()
		delete(h.peers.contents, strings.TrimSuffix(lease.Name, contentSuffix))
	}
	return nil
}
func (h contentHandler) Replace(list []any, _ string) error {
	h.peers.mu.Lock()
	defer h.peers.mu.Unlock()
	h.peers.contents = map[string]clusterSet{}
	for _, obj := range list {
		if lease, ok := obj.(*coordinationv1.Lease); ok {
			h.peers.seeContentLocked(lease)
		}
	}
	h.peers.contentsSynced = true
	return nil
}
func (h contentHandler) Resync() error { return nil }

// seeContentLocked records the clusters of another replica. p.mu is locked.
func (p *Peers) seeContentLocked(lease *coordinationv1.Lease) {
	if lease.Labels[labelContent] == "" {
		return
	}
	of := strings.TrimSuffix(lease.Name, contentSuffix)
	p.contents[of] = p.parse(lease)
	if other := p.others[of]; other != nil && !other.earlier {
		other.clusters = p.contents[of]
	}
}
