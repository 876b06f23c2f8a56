// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"fmt"
	"time"

	"github.com/spf13/pflag"

	"github.com/oam-dev/cluster-gateway/pkg/proxy"
)

// ProxyOptions bound what is proxied.
type ProxyOptions struct {
	RequestTimeout time.Duration
	DialTimeout    time.Duration
	MaxInFlight    int
	MaxStreams     int
	// ShutdownGrace is how long watches, followed logs and upgraded connections may go on when the gateway stops.
	ShutdownGrace time.Duration
}

// NewProxyOptions returns the defaults.
func NewProxyOptions() *ProxyOptions {
	return &ProxyOptions{
		RequestTimeout: proxy.DefaultRequestTimeout,
		DialTimeout:    proxy.DefaultDialTimeout,
		MaxInFlight:    proxy.DefaultMaxInFlight,
		MaxStreams:     proxy.DefaultMaxStreams,
		ShutdownGrace:  5 * time.Second,
	}
}

// AddFlags adds the flags of the group.
func (o *ProxyOptions) AddFlags(fs *pflag.FlagSet) {
	fs.DurationVar(&o.RequestTimeout, "proxy-request-timeout", o.RequestTimeout,
		"How long a proxied request may take, sending and receiving included. Watches, followed logs, exec, attach and port-forward have no limit.")
	fs.DurationVar(&o.DialTimeout, "proxy-dial-timeout", o.DialTimeout,
		"How long connecting to a managed API server may take, TLS included.")
	fs.IntVar(&o.MaxInFlight, "proxy-max-requests-inflight", o.MaxInFlight,
		"How many requests to one cluster may be in flight at a time; further ones get a 429. Watches and the like do not count. Less than 0: no limit.")
	fs.IntVar(&o.MaxStreams, "proxy-max-streams", o.MaxStreams,
		"How many watches, followed logs, exec, attach and port-forward one cluster may have at a time; further ones get a 429. Less than 0: no limit.")
	fs.DurationVar(&o.ShutdownGrace, "proxy-shutdown-grace-period", o.ShutdownGrace,
		"How long proxied watches, followed logs, exec, attach and port-forward may go on when the gateway stops.")
}

// Validate returns every fault.
func (o *ProxyOptions) Validate() []error {
	var errs []error
	for _, d := range []struct {
		flag  string
		value time.Duration
	}{{"--proxy-request-timeout", o.RequestTimeout}, {"--proxy-dial-timeout", o.DialTimeout}} {
		if d.value <= 0 {
			errs = append(errs, fmt.Errorf("%s must be more than 0, and is %s", d.flag, d.value))
		}
	}
	for _, limit := range []struct {
		flag  string
		value int
	}{{"--proxy-max-requests-inflight", o.MaxInFlight}, {"--proxy-max-streams", o.MaxStreams}} {
		if limit.value == 0 {
			errs = append(errs, fmt.Errorf("%s must not be 0; less than 0 is no limit", limit.flag))
		}
	}
	if o.ShutdownGrace < 0 {
		errs = append(errs, fmt.Errorf("--proxy-shutdown-grace-period must not be negative, and is %s", o.ShutdownGrace))
	}
	return errs
}
