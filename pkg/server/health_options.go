// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"fmt"
	"time"

	"github.com/spf13/pflag"

	"github.com/oam-dev/cluster-gateway/pkg/health"
)

// HealthOptions say how the clusters are watched over.
type HealthOptions struct {
	// LeaderElect is whether one of several replicas is elected to do what only one must: health, certificates, renewals.
	LeaderElect bool
	// ProbeInterval is the time between two probes of a cluster, ProbeTimeout bounds one, and Concurrency is how many there are
	// at a time.
	ProbeInterval, ProbeTimeout time.Duration
	Concurrency                 int
	// OverrideDuration is how long an operator's override stands; 0 means for ever.
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
		"Elect one of the replicas, by a Lease in --secret-namespace, to probe the clusters and to renew certificates and credentials. Switch it off only when there is one replica.")
	fs.DurationVar(&o.ProbeInterval, "health-probe-interval", o.ProbeInterval,
		"Time between two probes of a cluster. A cluster that fails is looked at sooner, one that has failed for long more seldom, and one whose agents come or go at once.")
	fs.DurationVar(&o.ProbeTimeout, "health-probe-timeout", o.ProbeTimeout, "How long a probe may take.")
	fs.IntVar(&o.Concurrency, "health-probe-concurrency", o.Concurrency, "How many clusters are probed at a time.")
	fs.DurationVar(&o.OverrideDuration, "health-override-duration", o.OverrideDuration,
		"How long the health that an operator has set (PUT on the health subresource) stands against what probes find. 0: until the annotation status.cluster.core.oam.dev/override is removed from the Secret.")
}

// Validate returns every fault.
func (o *HealthOptions) Validate() []error {
	var errs []error
	for _, d := range []struct {
		flag  string
		value time.Duration
	}{{"--health-probe-interval", o.ProbeInterval}, {"--health-probe-timeout", o.ProbeTimeout}} {
		if d.value < 100*time.Millisecond {
			errs = append(errs, fmt.Errorf("%s must be at least 100ms, and is %s", d.flag, d.value))
		}
	}
	if o.Concurrency < 1 {
		errs = append(errs, fmt.Errorf("--health-probe-concurrency must be at least 1, and is %d", o.Concurrency))
	}
	if o.OverrideDuration < 0 {
		errs = append(errs, fmt.Errorf("--health-override-duration must not be negative, and is %s", o.OverrideDuration))
	}
	return errs
}
