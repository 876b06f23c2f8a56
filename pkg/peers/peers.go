// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package peers

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	"github.com/oam-dev/cluster-gateway/pkg/dialer"
)

// The times of presence.
const (
	// renewInterval is how often a replica renews its Lease.
	renewInterval = 5 * time.Second
	// Timeout is how long a replica counts as present after its last renewal was seen.
	Timeout = 15 * time.Second
	// publishDelay is how long a change of the agents waits for others, so that they are written
	// together.
	publishDelay = time.Second
	// forgetAfter is how long the Lease of a replica that is away is kept. Then another replica
	// deletes it.
	forgetAfter = 10 * time.Minute
)

// Config is what Peers need.
type Config struct {
	// Client and Namespace are the hub's client and the namespace of the Leases.
	Client    kubernetes.Interface
	Namespace string
	// ID is the identity of this process. It must be a DNS label, and unique.
	ID string
	// Address is where other replicas reach this one, as host:port.
	Address string
	// Credentials authenticate the replicas to each other.
	Credentials Credentials
	// Here reports whether an agent of the cluster is connected to this replica.
	Here func(cluster string) bool
	// Forwarded serves the requests that other replicas forward.
	Forwarded http.Handler
	// Dial returns a connection to the API server of a cluster through an agent of this replica.
	Dial func(ctx context.Context, cluster string) (net.Conn, error)
	// Metrics must not be nil.
	Metrics *Metrics
	// Clock is the time. nil means the real one.
	Clock clock.WithTicker
	// Logger receives changes and failures. Its zero value logs nothing.
	Logger klog.Logger
}

// Peers are the replicas of the gateway, as seen by one of them. They are safe for concurrent use.
type Peers struct {
	cfg    Config
	client *client

	// changed wakes the goroutine that publishes.
	changed chan struct{}

	mu sync.RWMutex
	// agents are the clusters that have agents here.
	agents   map[string]struct{}
	draining bool
	// others are the other replicas by the name of their Lease.
	others map[string]*peer
	synced bool
	// lease is this replica's Lease, as it was last written. Only the goroutine that publishes uses
	// it.
	lease *coordinationv1.Lease
}

// peer is another replica.
type peer struct {
	address  string
	draining bool
	clusters clusterSet
	// version is the resourceVersion of its Lease, and seen when this version was first seen.
	version string
	seen    time.Time
	// failed is when a connection to it failed last.
	failed time.Time
}

// New returns Peers that know no other replica yet. Metrics may be shared with no other Peers.
func New(cfg Config) *Peers {
	if cfg.Clock == nil {
		cfg.Clock = clock.RealClock{}
	}
	p := &Peers{cfg: cfg, changed: make(chan struct{}, 1), agents: map[string]struct{}{}, others: map[string]*peer{}}
	p.client = newClient(cfg.Credentials)
	cfg.Metrics.observe(p)
	return p
}

// SetAgents records how many agents of a cluster are connected to this replica. It does not block.
func (p *Peers) SetAgents(cluster string, n int) {
	p.mu.Lock()
	if n > 0 {
		p.agents[cluster] = struct{}{}
	} else {
		delete(p.agents, cluster)
	}
	p.mu.Unlock()
	p.wake()
}

// Drain makes the other replicas prefer others from now on. It does not block.
func (p *Peers) Drain() {
	p.mu.Lock()
	p.draining = true
	p.mu.Unlock()
	p.wake()
}

func (p *Peers) wake() {
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// errNotSynced is why a replica is not ready.
var errNotSynced = errors.New("the Leases of the other replicas have not been read yet")

// Ready returns an error until this replica knows the others, and can connect to them.
func (p *Peers) Ready() error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if !p.synced {
		return errNotSynced
	}
	_, err := tlsConfig(p.cfg.Credentials)
	return err
}

// Elsewhere reports whether no agent of the cluster is connected here, and another replica has one.
func (p *Peers) Elsewhere(cluster string) bool {
	return !p.cfg.Here(cluster) && len(p.candidates(cluster)) > 0
}

// avoidFor is how long a replica to which no connection could be made is tried last.
const avoidFor = 5 * time.Second

// candidates returns the other replicas that have an agent of the cluster, the best ones first, in
// random order among equals. It returns copies.
func (p *Peers) candidates(cluster string) (found []peer) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	now := p.cfg.Clock.Now()
	var later []peer
	for _, other := range p.others {
		switch {
		case !other.present(now) || !other.clusters.has(cluster):
		case other.draining || now.Sub(other.failed) < avoidFor:
			later = append(later, *other)
		default:
			found = append(found, *other)
		}
	}
	rand.Shuffle(len(found), func(i, j int) { found[i], found[j] = found[j], found[i] })
	return append(found, later...)
}

// present reports whether the replica has renewed its Lease lately.
func (o *peer) present(now time.Time) bool { return now.Sub(o.seen) <= Timeout }

// failedAt records that no connection to an address could be made.
func (p *Peers) failedAt(address string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, other := range p.others {
		if other.address == address {
			other.failed = p.cfg.Clock.Now()
		}
	}
}

// known returns how many other replicas are present, and the time since the oldest of their last
// renewals was seen.
func (p *Peers) known() (n int, oldest time.Duration) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	now := p.cfg.Clock.Now()
	for _, other := range p.others {
		if other.present(now) {
			n++
			oldest = max(oldest, now.Sub(other.seen))
		}
	}
	return n, oldest
}

// unreachable is the error of a request for a cluster whose agents are at other replicas, none of
// which could take it.
func unreachable(cluster string, err error) error {
	return &dialer.Error{Cluster: cluster, Stage: dialer.StagePeer, Err: err}
}
