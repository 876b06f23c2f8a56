// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/klog/v2"

	"github.com/oam-dev/cluster-gateway/pkg/identity"
)

// identities decide who clusters see.
type identities struct {
	resolver *identity.Resolver
	webhook  *identity.Webhook
	// file is nil if there are no rules for all clusters.
	file *identity.File
}

// newIdentities reads the rules for all clusters. An invalid file is an error.
func newIdentities(c IdentityConfig) (*identities, error) {
	i := &identities{}
	config := c.Resolver
	if c.RulesFile != "" {
		logger := klog.Background().WithName("identity")
		file, err := identity.OpenFile(c.RulesFile, logger)
		if err != nil {
			return nil, fmt.Errorf("invalid --cluster-gateway-proxy-config %q: %w", c.RulesFile, err)
		}
		i.file, config.Global = file, file
	}
	i.webhook = identity.NewWebhook(c.Webhook)
	config.Webhook = i.webhook
	i.resolver = identity.NewResolver(config)
	return i, nil
}

// run follows the file until ctx ends.
func (i *identities) run(ctx context.Context) error {
	defer i.close()
	if i.file == nil {
		<-ctx.Done()
		return nil
	}
	return i.file.Run(ctx, identity.DefaultReloadInterval)
}

// close ends the questions to webhooks.
func (i *identities) close() { i.webhook.Close() }

// metric reports whether the rules for all clusters can be used.
func (i *identities) metric() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: "cluster_gateway", Name: "identity_rules_valid",
		Help: "[ALPHA] 1 if the file of --cluster-gateway-proxy-config can be used or is not set, and 0 while requests are refused because it is invalid.",
	}, func() float64 {
		if i.file != nil {
			if _, err := i.file.Rules(); err != nil {
				return 0
			}
		}
		return 1
	})
}
