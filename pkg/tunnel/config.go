// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"time"

	"k8s.io/klog/v2"

	"github.com/oam-dev/cluster-gateway/pkg/dialer"
)

const (
	// DefaultMaxAgents is the default of Config.MaxAgents.
	DefaultMaxAgents = 32

	// EnrollmentTimeout bounds the enrollment of one invited cluster, from the start of its stream.
	EnrollmentTimeout = time.Minute

	// keepaliveTime and keepaliveTimeout bound how long an agent that has vanished stays in the
	// table. Their sum must stay below the 45 s that the gateway promises.
	keepaliveTime    = 15 * time.Second
	keepaliveTimeout = 15 * time.Second

	// defaultAttemptTimeout is how long a dial waits for one agent while there is another one to
	// try. The stock agent limits a dial to 5 s and then answers (dialTimeout in its
	// pkg/agent/client.go). This is one second more.
	defaultAttemptTimeout = 6 * time.Second

	// defaultStallTimeout is how long an agent may accept no packet at all before its stream is
	// ended. The stock agent stops reading when it holds about 150 packets for one connection whose
	// API server does not read. This side cannot see which connection that is.
	defaultStallTimeout = 15 * time.Second

	// defaultOwnStreamTimeout is how long a dial for an upgrade waits for a stream of its own. A
	// stock agent opens the next one about a second after its last one was answered
	// (--sync-interval), so this is enough for two.
	defaultOwnStreamTimeout = 2500 * time.Millisecond

	// defaultSpareFor and defaultWarmFor are how long an unused stream for upgrades is kept. The
	// second is for the one that each agent keeps longer: for a script that runs one command after
	// the other.
	defaultSpareFor = 10 * time.Second
	defaultWarmFor  = time.Minute

	// defaultParkedAlone is how long a stream stays parked if there is one replica. Should there be
	// another one, as during a rolling update, agents find it in this time.
	defaultParkedAlone = 5 * time.Minute
	// defaultParkedShort and defaultParkedLong are the same for several replicas: the first time,
	// and the longest one. Each time costs one TLS handshake. If Config.Missing is set, the longest
	// one is how often it is asked, which costs none, and defaultParkedSearch is the longest one
	// while it is true. A load balancer that keeps clients together may never let the agent find
	// another replica, and forwarded requests reach the cluster all the same.
	defaultParkedShort  = time.Second
	defaultParkedLong   = 15 * time.Second
	defaultParkedSearch = time.Hour

	// defaultCheckInterval is how often the server looks for streams to end.
	defaultCheckInterval = 2 * time.Second

	// defaultMaxIdle is how long a peer may be connected without a stream.
	defaultMaxIdle = time.Minute

	// defaultServesInterval is how often the Enroller is asked whether an agent may still use its
	// invitation as its certificate.
	defaultServesInterval = 10 * time.Second

	// defaultRefusalPause is how long a refused enrollment takes at least. It limits how often one
	// invitation can make the gateway ask the hub.
	defaultRefusalPause = time.Second
)

// Config configures a Server. It must not change after New.
type Config struct {
	// ServerID identifies this replica to agents. It is required, and no two replicas may have the
	// same one.
	ServerID string
	// ServerCount is the number of replicas that agents should connect to. If it is more than one,
	// agents are made to look for others: see Missing. 0 means 1.
	ServerCount int
	// TLS is the serving configuration. It must require client certificates and verify them against
	// its own ClientCAs; otherwise [Server.Serve] fails. GetConfigForClient is used if it is set,
	// so that certificates and CAs can be reloaded. The same is required of what it returns.
	TLS *tls.Config
	// ReceiveBuffer is how many bytes each connection buffers; all connections of a cluster buffer
	// at most four times as many. 0 means dialer.DefaultReceiveBuffer.
	ReceiveBuffer int
	// Memory is what all connections take their buffers from, beyond dialer.MinReceiveBuffer for
	// each. nil means no limit other than ReceiveBuffer.
	Memory dialer.Memory
	// MaxAgents bounds the agents of one cluster. Together they can have twice as many streams for
	// upgrades. There may be eight times as many connections, with or without a stream. A leaked
	// certificate, or an agent that restarts again and again, must not use up the gateway's memory.
	// 0 means DefaultMaxAgents.
	MaxAgents int
	// Missing, if set, reports whether fewer than ServerCount replicas have agents of the cluster,
	// and there is another one that could. Then replicas forward requests to each other, and agents
	// look for others only while it is true. It must not block. If it is nil, the replicas do not
	// know each other, and agents look for others again and again.
	Missing func(cluster string) bool
	// ReplicaAway, if set, returns for how long another replica that had an agent of the cluster has
	// been away, and 0 if there is none. It must not block.
	ReplicaAway func(cluster string) time.Duration
	// Accept returns why the certificate of an agent is not accepted, which has been verified. It is
	// called when an agent connects, and by [Server.Recheck]. It must not block. If it is nil, every
	// certificate that was verified is accepted.
	Accept func(cluster string, certificate *x509.Certificate) error
	// Enroller enrolls clusters that connect with an invitation. If it is nil, they are refused.
	Enroller Enroller
	// Logger logs the connections of agents. Its zero value logs nothing.
	Logger klog.Logger

	// The constants default… above and EnrollmentTimeout, unless a test of this package sets
	// another value.
	attemptTimeout, stallTimeout, checkInterval, maxIdle time.Duration
	maxHandshakes                                        int
	enrollmentTimeout, servesInterval, refusalPause      time.Duration
	ownStreamTimeout, spareFor, warmFor                  time.Duration
	parkedAlone, parkedShort, parkedLong, parkedSearch   time.Duration
	// maxUpgrades bounds the streams for upgrades of one cluster. 0 means twice MaxAgents.
	maxUpgrades int
}

// withDefaults returns cfg with the default of each field that is zero.
func (cfg Config) withDefaults() Config {
	cfg.ServerCount = max(cfg.ServerCount, 1)
	cfg.MaxAgents = cmp.Or(cfg.MaxAgents, DefaultMaxAgents)
	cfg.maxUpgrades = cmp.Or(cfg.maxUpgrades, 2*cfg.MaxAgents)
	cfg.ownStreamTimeout = cmp.Or(cfg.ownStreamTimeout, defaultOwnStreamTimeout)
	cfg.spareFor = cmp.Or(cfg.spareFor, defaultSpareFor)
	cfg.warmFor = cmp.Or(cfg.warmFor, defaultWarmFor)
	cfg.parkedAlone = cmp.Or(cfg.parkedAlone, defaultParkedAlone)
	cfg.parkedShort = cmp.Or(cfg.parkedShort, defaultParkedShort)
	cfg.parkedLong = cmp.Or(cfg.parkedLong, defaultParkedLong)
	cfg.parkedSearch = cmp.Or(cfg.parkedSearch, defaultParkedSearch)
	cfg.attemptTimeout = cmp.Or(cfg.attemptTimeout, defaultAttemptTimeout)
	cfg.stallTimeout = cmp.Or(cfg.stallTimeout, defaultStallTimeout)
	cfg.checkInterval = cmp.Or(cfg.checkInterval, defaultCheckInterval)
	cfg.maxIdle = cmp.Or(cfg.maxIdle, defaultMaxIdle)
	cfg.maxHandshakes = cmp.Or(cfg.maxHandshakes, maxHandshakes)
	cfg.servesInterval = cmp.Or(cfg.servesInterval, defaultServesInterval)
	cfg.refusalPause = cmp.Or(cfg.refusalPause, defaultRefusalPause)
	cfg.enrollmentTimeout = cmp.Or(cfg.enrollmentTimeout, EnrollmentTimeout)
	return cfg
}
