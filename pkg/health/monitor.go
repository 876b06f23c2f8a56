// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"crypto/x509"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/klog/v2"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/proxy"
)

// Defaults of Config.
const (
	// DefaultInterval is short enough for a cluster that goes away without a word to be noticed within 15 s.
	DefaultInterval = 10 * time.Second
	// DefaultTimeout is longer than a stock agent's own limit for a dial (5 s), so that its answer is the one that is told.
	DefaultTimeout     = 6 * time.Second
	DefaultConcurrency = 32
	// DefaultOverrideDuration is how long an operator's word stands.
	DefaultOverrideDuration = time.Hour
)

const (
	// versionInterval is how often the version is asked for, beside every time that a cluster becomes ready.
	versionInterval = 10 * time.Minute
	// failuresToTell is how many probes in a row must fail before a cluster that was ready is said not to be.
	failuresToTell = 2
	// agentsReturn is how long agents are given to connect to a replica that has just begun to accept them, before those
	// that have not are said to be gone: a stock agent tries again every 10 s at the latest.
	agentsReturn = 15 * time.Second
	// agentPause spreads what many agents cause that connect at once.
	agentPause = 200 * time.Millisecond
)

// Clusters are those that there are at this moment.
type Clusters interface {
	Get(name string) (*cluster.Cluster, bool)
	List() []*cluster.Cluster
}

// Prober asks a cluster's API server, over the route that requests take. Errors are *proxy.ProbeError.
type Prober interface {
	Ready(ctx context.Context, name string) (proxy.Readiness, error)
	Version(ctx context.Context, name string) (string, error)
}

// AgentsInfo tells of the agents that are connected to this replica's tunnel server.
type AgentsInfo interface {
	// Agents is how many are connected, and when the last that was went away.
	Agents(cluster string) (connected int, lastSeen time.Time)
}

// Config is what a Monitor needs.
type Config struct {
	Clusters Clusters
	Prober   Prober
	// Agents is nil unless agents connect to this process.
	Agents AgentsInfo
	// AgentCertificate, if set, is the certificate of a cluster's agents, of several the one that ends first; nil when it is not known.
	AgentCertificate func(cluster string) *x509.Certificate
	// Secrets are those of the clusters, and Events where transitions are told; nil: they are not.
	Secrets corev1client.SecretInterface
	Events  corev1client.EventInterface
	// Renewal, if set, tells why something of a cluster could not be renewed, by the type of the condition that it belongs to. An error
	// with a method Reason() string has that reason, others RenewalFailed.
	Renewal func(cluster string) map[string]error
	// Metrics may be shared with others; it must not be nil.
	Metrics *Metrics
	// Interval is the time between two probes of a cluster, Timeout bounds one, and Concurrency is how many there are at a
	// time; 0 means the defaults.
	Interval, Timeout time.Duration
	Concurrency       int
	// OverrideDuration is how long an operator's override stands; 0 means for ever.
	OverrideDuration time.Duration
	// Logger is where transitions are reported. Its zero value logs nothing.
	Logger klog.Logger

	// agentsReturn is the constant of this name, unless a test in this package says otherwise.
	agentsReturn time.Duration
}

// Monitor watches over the clusters while Run runs. It is safe for concurrent use.
type Monitor struct {
	cfg   Config
	began time.Time

	mu sync.Mutex
	// running is nil unless Run runs.
	running *term
}

// New returns a Monitor that is idle.
func New(cfg Config) *Monitor {
	if cfg.Interval == 0 {
		cfg.Interval = DefaultInterval
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	if cfg.Concurrency == 0 {
		cfg.Concurrency = DefaultConcurrency
	}
	if cfg.agentsReturn == 0 {
		cfg.agentsReturn = agentsReturn
	}
	return &Monitor{cfg: cfg, began: time.Now()}
}

// term is the time of one Run.
type term struct {
	cfg   *Config
	began time.Time // of the Monitor

	mu       sync.Mutex
	clusters map[string]*tracked
	queue    queue
	busy     int // probes under way
	// wake is signalled when what is due next may have changed.
	wake   chan struct{}
	probes sync.WaitGroup
}

// tracked is a cluster during a term. It is guarded by term.mu, but for what says otherwise.
type tracked struct {
	name  string
	due   time.Time
	index int // in the queue; -1: not there

	probing bool
	again   bool // something happened while it was being probed
	gone    bool

	fingerprint cluster.Fingerprint
	failures    int // in a row

	// The following belong to the probe under way.
	version   string
	versionAt time.Time
}

// Run watches until ctx ends, and then waits for the probes under way. It can be called again, but not twice at a time.
func (m *Monitor) Run(ctx context.Context) error {
	t := &term{cfg: &m.cfg, began: m.began, clusters: map[string]*tracked{}, wake: make(chan struct{}, 1)}
	m.mu.Lock()
	if m.running != nil {
		m.mu.Unlock()
		return errors.New("the health monitor is already running")
	}
	m.running = t
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		m.running = nil
		m.mu.Unlock()
		t.probes.Wait()
		m.cfg.Metrics.endTerm()
	}()
	t.begin()
	t.run(ctx)
	return nil
}

// begin takes over what is known already. It is spread over one interval: neither the clusters nor the hub are to be rushed by a new leader.
// The lock is held from before the list is taken, so that no change that is newer than the list comes before it.
func (t *term) begin() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range t.cfg.Clusters.List() {
		t.changedLocked(c.Name, c, time.Duration(rand.Int64N(int64(t.cfg.Interval))))
	}
}

func (m *Monitor) term() *term {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.running
}

// ClusterChanged follows a cluster's Secret; c is nil when it is gone.
func (m *Monitor) ClusterChanged(name string, c *cluster.Cluster) {
	if t := m.term(); t != nil {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.changedLocked(name, c, 0)
	}
}

// AgentsChanged has a cluster looked at whose agents have come or gone.
func (m *Monitor) AgentsChanged(name string) {
	if t := m.term(); t != nil {
		t.trigger(name, time.Duration(rand.Int64N(int64(agentPause))))
	}
}

// Trigger has a cluster looked at now.
func (m *Monitor) Trigger(name string) {
	if t := m.term(); t != nil {
		t.trigger(name, 0)
	}
}

func (t *term) changedLocked(name string, c *cluster.Cluster, delay time.Duration) {
	k := t.clusters[name]
	switch {
	case c == nil && k == nil:
	case c == nil:
		k.gone = true
		t.queue.drop(k)
		delete(t.clusters, name)
		t.cfg.Metrics.drop(name)
	case k == nil:
		k = &tracked{name: name, index: -1, fingerprint: c.Fingerprint()}
		t.clusters[name] = k
		if c.Health.Conditions == nil {
			delay = 0 // nobody knows it yet, and somebody may be waiting
		}
		t.queue.schedule(k, time.Now().Add(delay))
		t.signal()
	case k.fingerprint != c.Fingerprint():
		// What was found out about the former version says nothing about this one. A write of its health is no such change.
		k.fingerprint, k.failures = c.Fingerprint(), 0
		t.hurryLocked(k, 0)
	}
}

func (t *term) trigger(name string, delay time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if k := t.clusters[name]; k != nil {
		t.hurryLocked(k, delay)
	}
}

// hurryLocked has a cluster probed after the delay at the latest, and once more if it is being probed just now.
func (t *term) hurryLocked(k *tracked, delay time.Duration) {
	if k.probing {
		k.again = true
		return
	}
	if due := time.Now().Add(delay); due.Before(k.due) {
		t.queue.schedule(k, due)
		t.signal()
	}
}

func (t *term) signal() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

func (t *term) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		timer.Reset(t.start(ctx))
		select {
		case <-ctx.Done():
			return
		case <-t.wake:
		case <-timer.C:
		}
	}
}

// never is a time to wait when there is nothing to wait for.
const never = time.Hour

// start begins the probes that are due, and returns how long it is until the next is.
func (t *term) start(ctx context.Context) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	for t.busy < t.cfg.Concurrency {
		k := t.queue.next()
		if k == nil {
			return never
		}
		if wait := time.Until(k.due); wait > 0 {
			return wait
		}
		t.queue.drop(k)
		k.probing = true
		t.busy++
		t.probes.Go(func() {
			delay := t.probe(ctx, k)
			t.done(k, delay)
		})
	}
	return never // the end of a probe wakes
}

// done plans the next probe.
func (t *term) done(k *tracked, delay time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.busy--
	k.probing = false
	if k.again {
		k.again, delay = false, 0
	}
	if !k.gone {
		t.queue.schedule(k, time.Now().Add(delay))
	}
	t.signal()
}

// probe looks at one cluster and writes what is new. It returns when to look again.
func (t *term) probe(ctx context.Context, k *tracked) time.Duration {
	c, ok := t.cfg.Clusters.Get(k.name)
	if !ok {
		return t.cfg.Interval // its end is on its way
	}
	o := &observation{cluster: c}
	if c.Err() == nil {
		t.ask(ctx, k, o)
	}
	if ctx.Err() != nil {
		return t.cfg.Interval
	}
	o.now = time.Now()
	if t.cfg.AgentCertificate != nil && c.Route == cluster.RouteTunnel {
		o.agent = t.cfg.AgentCertificate(k.name)
	}
	if t.cfg.Renewal != nil {
		o.renewal = t.cfg.Renewal(k.name)
	}
	t.mu.Lock()
	k.failures++
	if o.err == nil {
		k.failures = 0
	}
	failures, stale := k.failures, k.gone || k.fingerprint != c.Fingerprint()
	t.mu.Unlock()
	if stale {
		return 0
	}
	if wait, hold := t.hold(c, o, failures); hold {
		return wait
	}
	t.mu.Lock()
	if !k.gone { // or its series would come back
		t.cfg.Metrics.probed(c, o)
	}
	t.mu.Unlock()
	if err := t.tell(ctx, k, o); err != nil && ctx.Err() == nil {
		t.cfg.Logger.Info("The health of a cluster could not be written to its Secret", "cluster", k.name, "err", err)
		return min(t.cfg.Interval, time.Second)
	}
	return t.after(c, failures)
}

// ask makes the probe.
func (t *term) ask(ctx context.Context, k *tracked, o *observation) {
	ctx, cancel := context.WithTimeout(ctx, t.cfg.Timeout)
	defer cancel()
	readiness, err := t.cfg.Prober.Ready(ctx, k.name)
	o.err, o.certificate, o.latency = err, readiness.Certificate, readiness.Latency
	if err != nil {
		k.versionAt = time.Time{} // it may come back as another
		return
	}
	if time.Since(k.versionAt) < versionInterval {
		return
	}
	// A server that is ready and does not tell its version is ready.
	if v, err := t.cfg.Prober.Version(ctx, k.name); err == nil {
		k.version, k.versionAt = v, time.Now()
	}
}

// hold is for failures that are not told yet: the first of a cluster that was ready, and a missing agent of a replica that has just
// started. It returns when to look again.
func (t *term) hold(c *cluster.Cluster, o *observation, failures int) (time.Duration, bool) {
	if o.err == nil || !wasReady(c) {
		return 0, false
	}
	if left := time.Until(t.began.Add(t.cfg.agentsReturn)); left > 0 && t.cfg.Agents != nil && c.Route == cluster.RouteTunnel {
		if n, _ := t.cfg.Agents.Agents(c.Name); n == 0 {
			return left, true
		}
	}
	if failures < failuresToTell {
		return t.after(c, failures), true
	}
	return 0, false
}

// wasReady is whether the last thing that was told is that the cluster is ready.
func wasReady(c *cluster.Cluster) bool {
	for _, found := range c.Health.Conditions {
		if found.Type == v1alpha1.ConditionReady {
			return found.Status == metav1.ConditionTrue
		}
	}
	return false
}

// after is the time to the next probe. Failures are looked at again soon: they may be short. After many there is time.
func (t *term) after(c *cluster.Cluster, failures int) time.Duration {
	delay := t.cfg.Interval
	switch {
	case c.Err() != nil:
		delay = max(delay, never) // nothing can change but the Secret
	case failures >= 1 && failures <= 3:
		delay >>= 4 - failures
	case failures > 120:
		delay *= 4
	case failures > 30:
		delay *= 2
	}
	// 10 % either way.
	return delay - delay/10 + time.Duration(rand.Int64N(int64(delay/5)+1))
}
