// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"time"

	"k8s.io/klog/v2"

	"github.com/oam-dev/cluster-gateway/pkg/identity"
	"github.com/oam-dev/cluster-gateway/pkg/internal/memory"
)

// Defaults of Config.
const (
	// DefaultRequestTimeout is 5 s longer than kube-apiserver's own default (--request-timeout,
	// 1m0s). A cluster that gives up then answers first, and the caller sees the cluster's answer.
	DefaultRequestTimeout = 65 * time.Second
	// DefaultDialTimeout covers the dial, by the gateway or by an agent (whose own limit is 5 s),
	// and the TLS handshake.
	DefaultDialTimeout = 10 * time.Second
	// DefaultMaxInFlight is kube-apiserver's default for one whole server
	// (--max-requests-inflight).
	DefaultMaxInFlight = 400
	// DefaultMaxStreams is half of the streams that the hub's one connection has by default
	// (--http2-max-streams-per-connection), so that no single cluster can use them all.
	DefaultMaxStreams = 4000
	// DefaultMaxDials is what 16 clusters that do not answer can use up.
	DefaultMaxDials = 1024
	// DefaultKeptBodyBytes is enough for the largest bodies that are kept of 64 requests at a time,
	// or for some thousand of ordinary size.
	DefaultKeptBodyBytes = 64 << 20
)

// Config is what a Handler needs.
type Config struct {
	// Clusters is called at least once for each request.
	Clusters ClusterGetter
	// Dialers makes the dialers of a cluster: two for each version of it.
	Dialers DialerFactory
	// Forwarder sends requests to other replicas. nil means that there are none, or that agents
	// connect to each of them.
	Forwarder Forwarder
	// Metrics may be shared with others. It must not be nil.
	Metrics *Metrics
	// RequestTimeout limits every request that is not long-running. 0 means DefaultRequestTimeout.
	RequestTimeout time.Duration
	// DialTimeout limits the time to establish a connection. 0 means DefaultDialTimeout.
	DialTimeout time.Duration
	// liveness replaces that of connections through a tunnel. It is for tests.
	liveness liveness
	// MaxInFlight is how many requests that are not long-running one cluster may have in flight. An
	// upgrade counts until the cluster has answered it. 0 means DefaultMaxInFlight; less than 0
	// means no limit.
	MaxInFlight int
	// MaxStreams is how many long-running requests (such as watches, logs, exec, attach and
	// port-forward) one cluster may have, including upgrades that it has not answered yet. 0 means
	// DefaultMaxStreams; less than 0 means no limit.
	MaxStreams int
	// MaxDials is how many connections may be in the making at a time, to all clusters together, and
	// in addition to one for each cluster. 0 means DefaultMaxDials; less than 0 means no limit.
	MaxDials int
	// Memory is the memory that clients and clusters can make the Handler hold. Requests for which
	// nothing is left are refused. nil means no limit.
	Memory *memory.Budget
	// KeptBodyBytes limits the memory for bodies that are kept in case the request has to be sent
	// again, over all clusters. If it is used up, bodies are passed on without being kept. 0 means
	// DefaultKeptBodyBytes; less than 0 means that none is kept.
	KeptBodyBytes int64
	// ApplicationCookies lets applications behind the proxy subresources of Pods, Services and Nodes
	// set cookies, and get them back. Otherwise no cookie is passed on, in either direction.
	ApplicationCookies bool
	// Identities decides who a cluster sees. nil means that there are no global rules and no
	// webhooks.
	Identities *identity.Resolver
	// Authorizer decides what callers may do in clusters. nil means that whoever may use a cluster
	// may do everything there that the cluster allows.
	Authorizer Authorizer
	// AuthorizeRequests is whether the Authorizer is asked before a request is sent. Otherwise, it is
	// only asked whether long-running requests may stay open.
	AuthorizeRequests bool
	// RecheckInterval is how often the Authorizer is asked whether long-running requests may stay
	// open. 0 or less means never.
	RecheckInterval time.Duration
	// Logger receives failures. Its zero value logs nothing.
	Logger klog.Logger
}

func (c *Config) setDefaults() {
	if c.RequestTimeout == 0 {
		c.RequestTimeout = DefaultRequestTimeout
	}
	if c.DialTimeout == 0 {
		c.DialTimeout = DefaultDialTimeout
	}
	if c.MaxInFlight == 0 {
		c.MaxInFlight = DefaultMaxInFlight
	}
	if c.MaxStreams == 0 {
		c.MaxStreams = DefaultMaxStreams
	}
	if c.MaxDials == 0 {
		c.MaxDials = DefaultMaxDials
	}
	if c.KeptBodyBytes == 0 {
		c.KeptBodyBytes = DefaultKeptBodyBytes
	}
	if c.Identities == nil {
		c.Identities = identity.NewResolver(identity.Config{})
	}
}
