// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"time"

	utilerrors "k8s.io/apimachinery/pkg/util/errors"

	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/health"
	"github.com/oam-dev/cluster-gateway/pkg/proxy"
)

// Config is what the gateway is made from: the values of valid [Options]. It is made without a
// request to the hub. A program that embeds the gateway can change it before Complete.
type Config struct {
	Hub    HubConfig
	Parse  cluster.ParseOptions
	Tunnel TunnelConfig
	// Peers is how the replicas reach each other. nil means that they do not forward requests.
	Peers *PeerConfig
	// Proxy and Health contain limits and times. New sets the parts that they need.
	Proxy  proxy.Config
	Health health.Config
	// Identity is how callers are carried to clusters.
	Identity IdentityConfig
	// MemoryBudget is the memory that clients and clusters can make the gateway hold, in bytes.
	MemoryBudget int64
	// ShutdownGrace is how long long-running requests can continue when the gateway stops.
	ShutdownGrace time.Duration
	// LeaderElect is whether the replicas elect a leader. Without it, this process is the only
	// replica.
	LeaderElect bool
	// ServingCertificate is the certificate that the gateway creates for its own endpoint. It is
	// nil if the flags name one.
	ServingCertificate *ServingCertificateConfig
	// Inventory is how the gateway publishes its clusters. nil means that it does not.
	Inventory *InventoryConfig
	// ClusterAPI is which clusters of Cluster API the gateway registers. nil means none.
	ClusterAPI *ClusterAPIConfig
	// RenewTokensAfter is the age at which the gateway renews the tokens of clusters. 0 means after
	// 80 % of their lifetime.
	RenewTokensAfter time.Duration
	// UpkeepInterval is how often the gateway looks for changes of each cluster's CA. 0 means
	// rotation.DefaultUpkeepInterval.
	UpkeepInterval time.Duration
	// Generic is a copy of its own.
	Generic *GenericOptions
}

// Config validates the options, reads their files and returns their values. It does not change the
// options.
func (o *Options) Config() (*Config, error) {
	if errs := o.Validate(); len(errs) > 0 {
		return nil, utilerrors.NewAggregate(errs)
	}
	c := &Config{
		Proxy: o.Proxy.config(), MemoryBudget: o.Memory.config(), ShutdownGrace: o.Proxy.ShutdownGrace,
		Health: o.Health.config(), LeaderElect: o.Health.LeaderElect,
		Peers: o.Peers.config(), Generic: o.Generic.clone(),
	}
	var err error
	if c.Parse, err = o.Hub.parseOptions(); err != nil {
		return nil, err
	}
	c.Parse.TunnelMode = cluster.TunnelMode(o.Tunnel.Mode)
	if c.Identity, err = o.Identity.config(&c.Parse); err != nil {
		return nil, err
	}
	if c.Hub, err = o.Hub.config(); err != nil {
		return nil, err
	}
	if c.Tunnel, err = o.Tunnel.config(); err != nil {
		return nil, err
	}
	if c.Tunnel.Embedded != nil && c.Tunnel.Embedded.ServerCount == 0 {
		c.Tunnel.Embedded.ServerCount = 1
		if c.Peers != nil {
			c.Tunnel.Embedded.ServerCount = 2
		}
	}
	if !o.Generic.hasServingCertificate() {
		c.ServingCertificate = o.ServingCertificate.config()
	}
	c.Inventory, c.ClusterAPI = o.Inventory.config(c.Hub.SecretNamespace), o.ClusterAPI.config()
	return c, nil
}

// CompletedConfig is a [Config] that New accepts.
type CompletedConfig struct{ *completedConfig }

// completedConfig is private, so that only Complete makes a CompletedConfig.
type completedConfig struct{ Config }

// Complete sets what follows from other values, in a copy.
func (c *Config) Complete() CompletedConfig {
	completed := &completedConfig{*c}
	completed.Generic = c.Generic.clone()
	completed.Generic.complete(c.Hub.Kubeconfig)
	return CompletedConfig{completed}
}
