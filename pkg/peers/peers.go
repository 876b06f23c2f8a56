// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package peers

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
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
	// publishRate limits how much is written if the agents change all the time, in bytes per second.
	publishRate = 16 << 10
	// forgetAfter is how long the Lease of a replica that is away is kept. Then another replica
	// deletes it.
	forgetAfter = 10 * time.Minute
	// recheckInterval is how often a replica is tried to which a connection has failed.
	recheckInterval = 2 * time.Second
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
	// Answers reports whether one of these agents answers, as far as is known. nil means that all
	// do.
	Answers func(cluster string) bool
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

	// The constants of these names in client.go, unless a test of this package sets another value.
	connectTimeout, pingAfter, pingTimeout time.Duration
}

// withDefaults returns cfg with the default of each field that is zero.
func (cfg Config) withDefaults() Config {
	if cfg.Clock == nil {
		cfg.Clock = clock.RealClock{}
	}
	if cfg.Answers == nil {
		cfg.Answers = cfg.Here
	}
	cfg.connectTimeout = cmp.Or(cfg.connectTimeout, connectTimeout)
	cfg.pingAfter = cmp.Or(cfg.pingAfter, pingAfter)
	cfg.pingTimeout = cmp.Or(cfg.pingTimeout, pingTimeout)
	return cfg
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
	// contents are the clusters of replicas, from their second Leases, by the name of the first one.
	contents map[string]clusterSet
	// synced and contentsSynced are set when both kinds of Leases have been read.
	synced, contentsSynced bool
	// earlierSeen is set when a replica has come that reads only the first Lease.
	earlierSeen atomic.Bool
	// lease and content are this replica's Leases, as they were last written. Only the goroutine
	// that publishes uses them.
	lease, content *coordinationv1.Lease
}

// peer is another replica.
type peer struct {
	address  string
	draining bool
	clusters clusterSet
	// earlier is set for a replica of an earlier version, which reads only the first Lease.
	earlier bool
	// version is the resourceVersion of its Lease, and seen when this version was first seen.
	version string
	seen    time.Time
	// failed is set when a connection to it could not be made, or broke. It is cleared when a
	// connection has worked since.
	failed bool
	// load is how many requests, streams and upgrades of this replica it has. All copies share it.
	load *atomic.Int64
}

// New returns Peers that know no other replica yet. Metrics may be shared with no other Peers.
func New(cfg Config) *Peers {
	cfg = cfg.withDefaults()
	p := &Peers{cfg: cfg, changed: make(chan struct{}, 1), agents: map[string]struct{}{}, others: map[string]*peer{}, contents: map[string]clusterSet{}}
	p.client = newClient(&p.cfg)
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
	if !p.synced || !p.contentsSynced {
		return errNotSynced
	}
	_, err := tlsConfig(p.cfg.Credentials)
	return err
}

// Elsewhere reports whether no agent of the cluster that answers is connected here, and another
// replica has one.
func (p *Peers) Elsewhere(cluster string) bool {
	if p.cfg.Answers(cluster) {
		return false
	}
	p.mu.RLock()
	defer p.mu.RUnlock()
	now, want := p.cfg.Clock.Now(), hash(cluster)
	for _, other := range p.others {
		if other.clusters.has(want) && p.usableLocked(other, now) {
			return true
		}
	}
	return false
}

// Away returns for how long the replica that had an agent of the cluster has not been seen. It is 0
// if there is none, or if it is in use.
func (p *Peers) Away(cluster string) (away time.Duration) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	now, want := p.cfg.Clock.Now(), hash(cluster)
	for _, other := range p.others {
		if unseen := now.Sub(other.seen); other.clusters.has(want) && !p.usableLocked(other, now) && (away == 0 || unseen < away) {
			away = unseen
		}
	}
	return away
}

// Missing reports whether fewer than wanted replicas have an agent of the cluster, which has one
// here, while there is one that has none. Replicas that drain do not count.
func (p *Peers) Missing(cluster string, wanted int) bool {
	p.mu.RLock()
	defer p.mu.RUnlock()
	now, want := p.cfg.Clock.Now(), hash(cluster)
	have, all := 1, 1
	for _, other := range p.others {
		if !other.present(now) || other.draining {
			continue
		}
		all++
		if other.clusters.has(want) {
			have++
		}
	}
	return have < min(wanted, all)
}

// candidates returns the other replicas that have an agent of the cluster, the best ones first, for
// requests, streams, upgrades and dials alike. It returns copies. A replica to which a connection
// has failed is the last resort. One that does not renew its Lease comes before it, and one that
// drains before that. Among equals, the one that has the fewest requests of this replica is the
// best. A replica that does not answer any more keeps its requests, so it gets no new ones even
// before its connections are found to be broken.
func (p *Peers) candidates(cluster string) (found []peer) {
	p.mu.RLock()
	now, want := p.cfg.Clock.Now(), hash(cluster)
	for _, other := range p.others {
		if other.clusters.has(want) && p.usableLocked(other, now) {
			found = append(found, *other)
		}
	}
	p.mu.RUnlock()
	if len(found) < 2 {
		return found
	}
	rand.Shuffle(len(found), func(i, j int) { found[i], found[j] = found[j], found[i] })
	loads := make(map[*atomic.Int64]int64, len(found)) // they change while the replicas are sorted
	for _, other := range found {
		loads[other.load] = other.load.Load()
	}
	slices.SortStableFunc(found, func(a, b peer) int {
		return cmp.Or(cmp.Compare(a.rank(now), b.rank(now)), cmp.Compare(loads[a.load], loads[b.load]))
	})
	return found
}

// rank is lower for a better replica, whatever its load.
func (o *peer) rank(now time.Time) int {
	switch {
	case o.failed:
		return 3
	case !o.present(now):
		return 2
	case o.draining:
		return 1
	default:
		return 0
	}
}

// usableLocked reports whether a replica gets requests: it is present, or it does not renew its
// Lease and connections to it work all the same, as if it is cut off from the hub. p.mu is locked.
func (p *Peers) usableLocked(o *peer, now time.Time) bool {
	return o.present(now) || !o.failed && !p.replacedLocked(o)
}

// replacedLocked reports whether a replica that came later has the address of o. That is the same
// container after a restart, for example. p.mu is locked.
func (p *Peers) replacedLocked(o *peer) bool {
	for _, other := range p.others {
		if other != o && other.address == o.address && other.seen.After(o.seen) {
			return true
		}
	}
	return o.address == p.cfg.Address
}

// present reports whether the replica has renewed its Lease lately.
func (o *peer) present(now time.Time) bool { return now.Sub(o.seen) <= Timeout }

// setFailed records that a connection to an address could not be made or broke, or that one has
// worked.
func (p *Peers) setFailed(address string, failed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, other := range p.others {
		if other.address == address {
			other.failed = failed
		}
	}
}

// recheck connects to the replicas to which a connection has failed, until ctx ends. So no request
// has to find out whether one works again.
func (p *Peers) recheck(ctx context.Context) {
	ticker := p.cfg.Clock.NewTicker(recheckInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C():
		}
		var group sync.WaitGroup
		for _, address := range p.failedAddresses() {
			group.Go(func() {
				conn, err := connect(ctx, &p.cfg, address, "h2")
				if err != nil {
					return
				}
				_ = conn.Close() // nothing was sent
				p.setFailed(address, false)
			})
		}
		group.Wait()
	}
}

// failedAddresses returns the addresses of the replicas to which a connection has failed.
func (p *Peers) failedAddresses() (all []string) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	for _, other := range p.others {
		if other.failed && !p.replacedLocked(other) {
			all = append(all, other.address)
		}
	}
	return all
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
