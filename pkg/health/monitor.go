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

	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/klog/v2"

	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/proxy"
)

// Defaults of Config.
const (
	// DefaultInterval is short enough to report a cluster that disappears silently within 15 s.
	DefaultInterval = 10 * time.Second
	// DefaultTimeout is longer than a stock agent's own limit for a dial (5 s), so that the agent's
	// error is the one reported.
	DefaultTimeout     = 6 * time.Second
	DefaultConcurrency = 32
	// DefaultOverrideDuration is how long an operator's override is valid.
	DefaultOverrideDuration = time.Hour
)

const (
	// versionInterval is how often the version is read. It is also read each time a cluster becomes
	// ready.
	versionInterval = 10 * time.Minute
	// failureThreshold is how many probes in a row must fail before a ready cluster is reported as
	// not ready.
	failureThreshold = 2
	// agentReconnectTime is how long agents have to connect to a replica that has just started.
	// Until then, a cluster without an agent is not reported. A stock agent tries to connect every
	// 10 s or more often.
	agentReconnectTime = 15 * time.Second
	// agentChangeJitter spreads the probes that start when many agents connect at the same time.
	agentChangeJitter = 200 * time.Millisecond
)

// Clusters returns the clusters that are registered now.
type Clusters interface {
	Get(name string) (*cluster.Cluster, bool)
	List() []*cluster.Cluster
}

// Prober sends requests to a cluster's API server, over the same route as requests to the proxy
// subresource. Its errors are
// *proxy.ProbeError.
type Prober interface {
	Ready(ctx context.Context, name string) (proxy.Readiness, error)
	Version(ctx context.Context, name string) (string, error)
}

// AgentsInfo knows the agents that are connected to the tunnel server of this replica.
type AgentsInfo interface {
	// Agents returns how many agents of a cluster are connected, and when the last of them
	// disconnected.
	Agents(cluster string) (connected int, lastSeen time.Time)
}

// Config configures a Monitor.
type Config struct {
	Clusters Clusters
	Prober   Prober
	// Agents is nil unless agents connect to this process.
	Agents AgentsInfo
	// AgentCertificate, if set, returns the certificate of a cluster's agents. If there are
	// several, it returns the one that expires first. It returns nil if none is known.
	AgentCertificate func(cluster string) *x509.Certificate
	// AgentRefusal, if set, returns why an agent of a cluster was refused recently although its
	// certificate is accepted. It returns nil if none was.
	AgentRefusal func(cluster string) error
	// FailingAgents, if set, returns an error that names the agents of a cluster whose connections
	// fail while another agent works. It returns nil if there are none.
	FailingAgents func(cluster string) error
	// ExternalTunnel is set if agents connect to konnectivity-servers, and not to the gateway.
	ExternalTunnel bool
	// Secrets is the client for the clusters' Secrets. If it is nil, nothing is written.
	Secrets corev1client.SecretInterface
	// Events is the client for Events. If it is nil, no Events are recorded.
	Events corev1client.EventInterface
	// Renewal, if set, returns the errors of failed renewals of a cluster's credentials and
	// certificates. The key is the type of the condition that reports the error. The reason of the
	// condition is the result of the error's method Reason() string. Without this method, it is
	// RenewalFailed.
	Renewal func(cluster string) map[string]error
	// Metrics may be shared. It must not be nil.
	Metrics *Metrics
	// Interval is the time between two probes of a cluster, Timeout bounds one probe, and
	// Concurrency is the maximum number of probes at the same time. 0 means the defaults.
	Interval, Timeout time.Duration
	Concurrency       int
	// OverrideDuration is how long an operator's override is valid. 0 means forever.
	OverrideDuration time.Duration
	// Logger logs changes of conditions. Its zero value logs nothing.
	Logger klog.Logger

	// agentReconnectTime replaces the constant of the same name in tests.
	agentReconnectTime time.Duration
}

// Monitor probes the clusters while Run runs. It is safe for concurrent use.
type Monitor struct {
	cfg     Config
	started time.Time

	mu sync.Mutex
	// current is nil unless Run runs.
	current *run
}

// New returns a Monitor that is not running.
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
	if cfg.agentReconnectTime == 0 {
		cfg.agentReconnectTime = agentReconnectTime
	}
	return &Monitor{cfg: cfg, started: time.Now()}
}

// Run probes the clusters until ctx ends, and then waits for the running probes. It can be called
// again when it has returned.
func (m *Monitor) Run(ctx context.Context) error {
	r := &run{cfg: &m.cfg, started: m.started, clusters: map[string]*tracked{}, wake: make(chan struct{}, 1)}
	m.mu.Lock()
	if m.current != nil {
		m.mu.Unlock()
		return errors.New("the health monitor is already running")
	}
	m.current = r
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		m.current = nil
		m.mu.Unlock()
		r.probes.Wait()
		m.cfg.Metrics.reset()
	}()
	r.addAll()
	r.loop(ctx)
	return nil
}

func (m *Monitor) currentRun() *run {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.current
}

// ClusterChanged must be called when a cluster's Secret has changed. c is nil if the cluster was
// removed.
func (m *Monitor) ClusterChanged(name string, c *cluster.Cluster) {
	if r := m.currentRun(); r != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.changedLocked(name, c, 0)
	}
}

// AgentsChanged must be called when an agent of a cluster has connected or disconnected. It starts
// a probe.
func (m *Monitor) AgentsChanged(name string) {
	if r := m.currentRun(); r != nil {
		r.trigger(name, time.Duration(rand.Int64N(int64(agentChangeJitter))))
	}
}

// Trigger starts a probe of a cluster.
func (m *Monitor) Trigger(name string) {
	if r := m.currentRun(); r != nil {
		r.trigger(name, 0)
	}
}
