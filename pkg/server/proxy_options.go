// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"time"

	"github.com/spf13/pflag"

	"github.com/oam-dev/cluster-gateway/pkg/proxy"
)

// ProxyOptions limit proxied requests. Their config is that of pkg/proxy.
type ProxyOptions struct {
	RequestTimeout time.Duration
	DialTimeout    time.Duration
	MaxInFlight    int
	MaxStreams     int
	MaxDials       int
	KeptBodyBytes  int64
	// ApplicationCookies passes on the cookies of applications behind the proxy subresources of Pods,
	// Services and Nodes.
	ApplicationCookies bool
	// AuthorizeRequests is whether callers need a rule of the hub for what they do in a cluster.
	AuthorizeRequests bool
	// RecheckInterval is how often the callers of long-running requests are authorized again. 0 means
	// never.
	RecheckInterval time.Duration
	// ShutdownGrace is how long long-running requests can continue when the gateway stops.
	ShutdownGrace time.Duration
}

// NewProxyOptions returns the defaults.
func NewProxyOptions() *ProxyOptions {
	return &ProxyOptions{
		RequestTimeout: proxy.DefaultRequestTimeout,
		DialTimeout:    proxy.DefaultDialTimeout,
		MaxInFlight:    proxy.DefaultMaxInFlight,
		MaxStreams:     proxy.DefaultMaxStreams,
		MaxDials:       proxy.DefaultMaxDials,
		KeptBodyBytes:  proxy.DefaultKeptBodyBytes,
		ShutdownGrace:  5 * time.Second,
		// With the cache of decisions (10 s), a caller who loses the permission loses open streams
		// within 30 s.
		RecheckInterval: 20 * time.Second,
	}
}

// AddFlags adds the flags of the group.
func (o *ProxyOptions) AddFlags(fs *pflag.FlagSet) {
	fs.DurationVar(&o.RequestTimeout, "proxy-request-timeout", o.RequestTimeout,
		"Maximum duration of a proxied request, including its body and its response. Long-running requests have no limit: watches, logs, exec, attach, port-forward, and the proxy subresources of Pods, Services and Nodes.")
	fs.DurationVar(&o.DialTimeout, "proxy-dial-timeout", o.DialTimeout,
		"Maximum duration of a new connection to a managed API server, including TLS.")
	fs.IntVar(&o.MaxInFlight, "proxy-max-requests-inflight", o.MaxInFlight,
		"Maximum number of requests in flight to one cluster. When it is reached, the gateway answers 429 (Too Many Requests). One user can have at most two thirds of them, and less while other users have many. Long-running requests do not count. A negative value means no limit.")
	fs.IntVar(&o.MaxStreams, "proxy-max-streams", o.MaxStreams,
		"Maximum number of long-running requests to one cluster: watches, logs (whether followed or not), exec, attach, port-forward, and the proxy subresources of Pods, Services and Nodes. When it is reached, the gateway answers 429 (Too Many Requests). Users share it as they share --proxy-max-requests-inflight. A negative value means no limit.")
	fs.IntVar(&o.MaxDials, "proxy-max-dials", o.MaxDials,
		"Maximum number of connections to managed API servers that are being established at a time, in addition to one for each cluster. No cluster can have more than 64. When it is reached, requests that need a new connection wait, and fail with 429 (Too Many Requests) after --proxy-dial-timeout. A negative value means no limit.")
	fs.Int64Var(&o.KeptBodyBytes, "proxy-kept-body-bytes", o.KeptBodyBytes,
		"Maximum memory for request bodies that are kept in case a cluster closes the connection before it has processed the request, so that the gateway can send the request again. Bodies of more than 1 MiB are not kept. When it is used up, bodies are passed on without being kept. A negative value means that none is kept.")
	fs.BoolVar(&o.ApplicationCookies, "proxy-application-cookies", o.ApplicationCookies,
		"Pass on cookies of web applications behind the proxy subresources of Pods, Services and Nodes. Each cookie is limited to the path of the application that set it, but all applications of all clusters share the origin of the gateway or the hub, so a script of one can act as the user in another. Enable it only if you trust all applications.")
	fs.BoolVar(&o.AuthorizeRequests, "authorize-proxied-requests", o.AuthorizeRequests,
		"Check in the hub not only whether a caller may use a cluster (clustergateways/proxy), but also what the caller does there: verb, resource, namespace and name. The rules are plain RBAC of the hub, and can select clusters by label. Without a rule, only discovery is allowed. To try rules, use agent-bootstrap can-i.")
	fs.DurationVar(&o.RecheckInterval, "proxy-reauthorization-interval", o.RecheckInterval,
		"How often the gateway checks in the hub whether the caller of a long-running request, such as a watch or an exec, still has the permission. If not, it ends the request. A lost permission takes effect after at most this interval plus --authorization-webhook-cache-authorized-ttl. 0 means that permissions are checked only at the start.")
	fs.DurationVar(&o.ShutdownGrace, "proxy-shutdown-grace-period", o.ShutdownGrace,
		"How long proxied long-running requests, such as watches, logs, exec, attach and port-forward, can continue when the gateway stops, after --shutdown-delay-duration.")
}

// Validate returns every fault.
func (o *ProxyOptions) Validate() []error {
	var errs []error
	for _, d := range []struct {
		flag  string
		value time.Duration
	}{{"proxy-request-timeout", o.RequestTimeout}, {"proxy-dial-timeout", o.DialTimeout}} {
		if d.value <= 0 {
			errs = append(errs, invalid(d.flag, d.value, "must be greater than 0"))
		}
	}
	for _, limit := range []struct {
		flag  string
		value int
	}{{"proxy-max-requests-inflight", o.MaxInFlight}, {"proxy-max-streams", o.MaxStreams}, {"proxy-max-dials", o.MaxDials}, {"proxy-kept-body-bytes", int(o.KeptBodyBytes)}} {
		if limit.value == 0 {
			errs = append(errs, invalid(limit.flag, limit.value, "must not be 0; a negative value means no limit"))
		}
	}
	if o.RecheckInterval < 0 {
		errs = append(errs, invalid("proxy-reauthorization-interval", o.RecheckInterval, "must not be negative"))
	}
	if o.ShutdownGrace < 0 {
		errs = append(errs, invalid("proxy-shutdown-grace-period", o.ShutdownGrace, "must not be negative"))
	}
	return errs
}

// config returns the limits.
func (o *ProxyOptions) config() proxy.Config {
	return proxy.Config{
		RequestTimeout: o.RequestTimeout, DialTimeout: o.DialTimeout, MaxInFlight: o.MaxInFlight, MaxStreams: o.MaxStreams,
		MaxDials: o.MaxDials, KeptBodyBytes: o.KeptBodyBytes,
		ApplicationCookies: o.ApplicationCookies, AuthorizeRequests: o.AuthorizeRequests, RecheckInterval: o.RecheckInterval,
	}
}
