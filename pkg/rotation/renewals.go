// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package rotation

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"

	"github.com/oam-dev/cluster-gateway/pkg/cluster"
)

const (
	// lookInterval is how often is looked for what is due; it costs no request.
	lookInterval = 2 * time.Second
	// attemptTimeout bounds one renewal, and concurrency how many there are at a time.
	attemptTimeout = 15 * time.Second
	concurrency    = 8
)

// Clusters are those that there are, from memory.
type Clusters interface{ List() []*cluster.Cluster }

// Route sends requests to a cluster, with its credential, over its own route.
type Route func(name string) http.RoundTripper

// client speaks to a cluster's API server.
func (r Route) client(name string) (kubernetes.Interface, error) {
	return kubernetes.NewForConfig(&rest.Config{
		Host: "https://" + name, Transport: bounded{r(name)}, QPS: -1,
		ContentConfig: rest.ContentConfig{ContentType: runtime.ContentTypeJSON}, // whatever speaks the API speaks this
	})
}

// maxAnswer bounds what is read of an answer: the cluster need not be well-meaning.
const maxAnswer = 2 << 20

// bounded cuts long answers off.
type bounded struct{ next http.RoundTripper }

func (b bounded) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := b.next.RoundTrip(req)
	if err == nil {
		resp.Body = http.MaxBytesReader(nil, resp.Body, maxAnswer)
	}
	return resp, err
}

// kind is something of clusters that is renewed.
type kind interface {
	// due is whether it is to be renewed now.
	due(c *cluster.Cluster) bool
	// renew renews it.
	renew(ctx context.Context, c *cluster.Cluster) error
	// end is when it ends; false when that is not known.
	end(c *cluster.Cluster) (time.Time, bool)
}

// renewals renews one kind of thing, of a few clusters at a time; what fails is remembered, and tried again.
type renewals struct {
	kind     kind
	clusters Clusters
	// subscribers does not change once run has started.
	subscribers []func(name string)
	logger      klog.Logger
	now         func() time.Time

	mu     sync.Mutex
	failed map[string]failure
}

// failure is a renewal that failed, of one version of a cluster.
type failure struct {
	err         error
	fingerprint cluster.Fingerprint
	again       time.Time
}

// run renews until ctx ends, and waits for what is under way.
func (r *renewals) run(ctx context.Context) {
	ticker := time.NewTicker(lookInterval)
	defer ticker.Stop()
	for {
		r.look(ctx)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// failure is why it could not be renewed for a cluster; nil: it could, or need not be.
func (r *renewals) failure(name string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failed[name].err
}

// look renews what is due.
func (r *renewals) look(ctx context.Context) {
	clusters := r.clusters.List()
	r.forget(clusters)
	slots := make(chan struct{}, concurrency)
	var group sync.WaitGroup
	for _, c := range clusters {
		if ctx.Err() != nil {
			break
		}
		if r.waits(c) || !r.kind.due(c) {
			continue
		}
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			attempt, cancel := context.WithTimeout(ctx, attemptTimeout)
			defer cancel()
			if err := r.kind.renew(attempt, c); ctx.Err() == nil {
				r.settle(c, err)
			}
		})
	}
	group.Wait()
}

// forget drops failures of clusters that are gone or have another credential by now.
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

// waits is whether a renewal has failed that is not to be tried again yet.
func (r *renewals) waits(c *cluster.Cluster) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	f, failed := r.failed[c.Name]
	return failed && r.now().Before(f.again)
}

// How long after a failure the next attempt is made, unless there is less time: pauseEarly when nothing hangs on it yet, or it is for somebody
// else to do something.
const (
	pause      = time.Minute
	pauseEarly = 10 * time.Minute
)

// urgent is whether a renewal that failed is due.
func urgent(err error) bool {
	var early *earlyError
	var notOurs *NotOursError
	return !errors.As(err, &early) && !errors.As(err, &notOurs)
}

// settle remembers the outcome.
func (r *renewals) settle(c *cluster.Cluster, err error) {
	r.mu.Lock()
	_, before := r.failed[c.Name]
	delete(r.failed, c.Name)
	if err != nil {
		wait := pause
		if !urgent(err) {
			wait = pauseEarly
		}
		if end, known := r.kind.end(c); known {
			wait = min(wait, max(time.Second, end.Sub(r.now())/8))
		}
		r.failed[c.Name] = failure{err: err, fingerprint: c.Fingerprint(), again: r.now().Add(wait)}
	}
	r.mu.Unlock()
	if err != nil {
		r.logger.Info("A credential could not be renewed", "cluster", c.Name, "err", err)
	}
	if before != (err != nil) {
		for _, f := range r.subscribers {
			f(c.Name)
		}
	}
}
