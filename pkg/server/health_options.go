// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"time"

	"github.com/spf13/pflag"

	"github.com/oam-dev/cluster-gateway/pkg/health"
)

// HealthOptions say how the gateway checks the health of clusters. Their config is that of
// pkg/health.
type HealthOptions struct {
	// LeaderElect is whether the replicas elect a leader for the tasks that only one must do: health,
	// certificates, renewals.
	LeaderElect bool
	// ProbeInterval is the time between two probes of a cluster, ProbeTimeout bounds a probe, and
	// Concurrency is how many probes run at the same time.
	ProbeInterval, ProbeTimeout time.Duration
	Concurrency                 int
	// OverrideDuration is how long an operator's override is valid. 0 means that it does not expire.
	OverrideDuration time.Duration
}

// NewHealthOptions returns the defaults.
func NewHealthOptions() *HealthOptions {
	return &HealthOptions{
		LeaderElect: true, ProbeInterval: health.DefaultInterval, ProbeTimeout: health.DefaultTimeout,
		Concurrency: health.DefaultConcurrency, OverrideDuration: health.DefaultOverrideDuration,
	}
}

// AddFlags adds the flags of the group.
func (o *HealthOptions) AddFlags(fs *pflag.FlagSet) {
	fs.BoolVar(&o.LeaderElect, "leader-elect", o.LeaderElect,
		"Elect one replica, with a Lease in --secret-namespace, that probes the clusters and renews certificates and credentials. Disable this only if there is one replica.")
	fs.DurationVar(&o.ProbeInterval, "health-probe-interval", o.ProbeInterval,
		"Time between two probes of a cluster. The time is shorter after a failure and longer after many failures. When an agent connects or disconnects, a probe starts immediately.")
	fs.DurationVar(&o.ProbeTimeout, "health-probe-timeout", o.ProbeTimeout, "Maximum duration of a probe.")
	fs.IntVar(&o.Concurrency, "health-probe-concurrency", o.Concurrency, "Maximum number of clusters that are probed at the same time.")
	fs.DurationVar(&o.OverrideDuration, "health-override-duration", o.OverrideDuration,
		"How long the health that an operator has set (PUT on the health subresource) takes precedence over probes. 0 means until the annotation status.cluster.core.oam.dev/override is removed from the Secret.")
}

// Validate returns every fault.
func (o *HealthOptions) Validate() []error {
	var errs []error
	for _, d := range []struct {
		flag  string
		value time.Duration
	}{{"health-probe-interval", o.ProbeInterval}, {"health-probe-timeout", o.ProbeTimeout}} {
		if d.value < 100*time.Millisecond {
			errs = append(errs, invalid(d.flag, d.value, "must be at least 100ms"))
		}
	}
	if o.Concurrency < 1 {
		errs = append(errs, invalid("health-probe-concurrency", o.Concurrency, "must be at least 1"))
	}
	if o.OverrideDuration < 0 {
		errs = append(errs, invalid("health-override-duration", o.OverrideDuration, "must not be negative"))
	}
	return errs
}

// config returns the times and limits.
func (o *HealthOptions) config() health.Config {
	return health.Config{
		Interval: o.ProbeInterval, Timeout: o.ProbeTimeout, Concurrency: o.Concurrency, OverrideDuration: o.OverrideDuration,
	}
}
