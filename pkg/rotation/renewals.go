// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package rotation

import (
	"context"
	"errors"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/klog/v2"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/internal/untrusted"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

const (
	// checkInterval is how often clusters are checked for credentials that are due. It costs no
	// request.
	checkInterval = 2 * time.Second
	// attemptTimeout bounds one renewal, concurrency the number of renewals at a time.
	attemptTimeout = 15 * time.Second
	concurrency    = 8
)

// Clusters lists the registered clusters from memory.
type Clusters interface{ List() []*cluster.Cluster }

// renewer renews one kind of credential.
type renewer interface {
	// due is whether the credential of a cluster must be renewed now.
	due(c *cluster.Cluster) bool
	// renew renews it.
	renew(ctx context.Context, c *cluster.Cluster) error
	// expiry is when it expires, or false if that is not known.
	expiry(c *cluster.Cluster) (time.Time, bool)
}

// renewals renews one kind of credential, of a few clusters at a time. It remembers failures, and
// tries again.
type renewals struct {
	renewer  renewer
	clusters Clusters
	// subscribers does not change once run has started.
	subscribers []func(name string)
	logger      klog.Logger
	now         func() time.Time
	metrics     *Metrics
	metricsTask string

	mu     sync.Mutex
	failed map[string]failure
}

func newRenewals(r renewer, task string, clusters Clusters, logger klog.Logger, now func() time.Time, metrics *Metrics, metricsTask string) renewals {
	return renewals{renewer: r, clusters: clusters, logger: logger.WithValues("task", task), now: now, metrics: metrics, metricsTask: metricsTask, failed: map[string]failure{}}
}

// subscribe calls f for clusters whose renewal fails for the first time, or succeeds again.
func (r *renewals) subscribe(f func(name string)) { r.subscribers = append(r.subscribers, f) }

// failure is a renewal that failed, of one version of a cluster.
type failure struct {
	err         error
	fingerprint cluster.Fingerprint
	// request is the request for a rotation that was there.
	request string
	again   time.Time
}

// run renews until ctx is done, and waits for renewals in progress.
func (r *renewals) run(ctx context.Context) {
	ticker := time.NewTicker(checkInterval)
	defer ticker.Stop()
	for {
		r.renewDue(ctx)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// failure returns why the last renewal for a cluster failed, or nil.
func (r *renewals) failure(name string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failed[name].err
}

// renewDue renews every credential that is due.
func (r *renewals) renewDue(ctx context.Context) {
	clusters := r.clusters.List()
	r.forget(clusters)
	slots := make(chan struct{}, concurrency)
	var group sync.WaitGroup
	for _, c := range clusters {
		if ctx.Err() != nil {
			break
		}
		if r.waits(c) || !r.renewer.due(c) {
			continue
		}
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			attempt, cancel := context.WithTimeout(ctx, attemptTimeout)
			defer cancel()
			if err := r.renewer.renew(attempt, c); ctx.Err() == nil {
				r.record(c, err)
			}
		})
	}
	group.Wait()
}

// reportTimeout bounds writing why a request for a rotation failed.
const reportTimeout = 5 * time.Second

// reportFailure writes to the cluster's Secret why what somebody asked for failed, once for each
// request.
func (r *renewals) reportFailure(ctx context.Context, secrets corev1client.SecretInterface, c *cluster.Cluster, failed error) {
	if c.Rotation.Failure() != "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), reportTimeout)
	defer cancel()
	patch, err := registration.MergePatch(&metav1.ObjectMeta{UID: c.UID}, map[string]any{"metadata": map[string]any{"annotations": map[string]string{
		v1alpha1.AnnotationRotationFailure: c.Rotation.ID + " " + untrusted.Text(failed.Error()),
	}}})
	if err == nil {
		_, err = secrets.Patch(ctx, c.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: registration.RenewalFieldManager})
	}
	if err != nil {
		r.logger.Info("Could not record why a rotation failed", "cluster", c.Name, "err", err)
	}
}

// forget drops the failures of clusters that no longer exist or have another credential.
func (r *renewals) forget(clusters []*cluster.Cluster) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.failed) == 0 {
		return
	}
	still := map[string]failure{}
	for _, c := range clusters {
		if f, ok := r.failed[c.Name]; ok && f.fingerprint == c.Fingerprint() {
			still[c.Name] = f
		}
	}
	r.failed = still
}

// retry makes what has failed for a cluster due now.
func (r *renewals) retry(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if f, failed := r.failed[name]; failed {
		f.again = time.Time{}
		r.failed[name] = f
	}
}

// waits is whether a renewal has failed and must not be tried again yet.
func (r *renewals) waits(c *cluster.Cluster) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	f, failed := r.failed[c.Name]
	return failed && f.request == c.Rotation.ID && r.now().Before(f.again)
}

// How long after a failure the next attempt is made, unless there is less time. retryEarlyAfter
// applies if nothing depends on the renewal yet, or if somebody else has to do something.
const (
	retryAfter      = time.Minute
	retryEarlyAfter = 10 * time.Minute
)

// urgent is whether a renewal that failed is due.
func urgent(err error) bool {
	var early *earlyError
	var notOurs *NotOursError
	return !errors.As(err, &early) && !errors.As(err, &notOurs)
}

// record remembers the outcome of a renewal.
func (r *renewals) record(c *cluster.Cluster, err error) {
	r.metrics.ended(r.metricsTask, err)
	r.mu.Lock()
	_, before := r.failed[c.Name]
	delete(r.failed, c.Name)
	if err != nil {
		wait := retryAfter
		if !urgent(err) {
			wait = retryEarlyAfter
		}
		if expiry, known := r.renewer.expiry(c); known {
			wait = min(wait, max(time.Second, expiry.Sub(r.now())/8))
		}
		r.failed[c.Name] = failure{err: err, fingerprint: c.Fingerprint(), request: c.Rotation.ID, again: r.now().Add(wait)}
	}
	r.mu.Unlock()
	if err != nil {
		r.logger.Info("A task for a cluster failed, and is tried again", "cluster", c.Name, "err", err)
	}
	if before != (err != nil) {
		for _, f := range r.subscribers {
			f(c.Name)
		}
	}
}
