// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package rotation

import (
	"context"
	"fmt"
	"hash/fnv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/klog/v2"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/pki"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

// TokensConfig is what Tokens needs.
type TokensConfig struct {
	Clusters Clusters
	Route    Route
	// Secrets are those of the clusters.
	Secrets corev1client.SecretInterface
	// RenewAfter, if set, is the age at which a token is renewed, however long it lives; 0: by its life.
	RenewAfter time.Duration
	// Logger is where renewals are reported. Its zero value logs nothing.
	Logger klog.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Tokens renews tokens. It is safe for concurrent use.
type Tokens struct {
	cfg      TokensConfig
	renewals renewals
}

var _ renewer = (*Tokens)(nil)

// NewTokens returns a Tokens that is idle.
func NewTokens(cfg TokensConfig) *Tokens {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	t := &Tokens{cfg: cfg}
	t.renewals = renewals{renewer: t, clusters: cfg.Clusters, logger: cfg.Logger, now: cfg.Now, failed: map[string]failure{}}
	return t
}

// OnChange subscribes f to clusters whose renewal fails for the first time, or succeeds again. f must not block. OnChange must not
// be called after Run.
func (t *Tokens) OnChange(f func(name string)) {
	t.renewals.subscribers = append(t.renewals.subscribers, f)
}

// Run renews until ctx is done, and waits for renewals in progress. Only one Run may be active at a time.
func (t *Tokens) Run(ctx context.Context) error {
	t.renewals.run(ctx)
	return nil
}

// Failure is why the last renewal of a cluster's token failed, or nil.
func (t *Tokens) Failure(name string) error { return t.renewals.failure(name) }

// due is whether a cluster's token is to be renewed now. An expired token cannot be used to renew itself.
func (t *Tokens) due(c *cluster.Cluster) bool {
	if c.Err() != nil || c.ManagedBy != v1alpha1.ManagedByAgentBootstrap || c.Credential.Type != v1alpha1.CredentialTypeServiceAccountToken {
		return false
	}
	begin, begins := c.Credential.Begin()
	end, ends := c.Credential.Expiry()
	now := t.cfg.Now()
	if !begins || !ends || !now.Before(end) {
		return false
	}
	if t.cfg.RenewAfter > 0 && !now.Before(begin.Add(t.cfg.RenewAfter)) {
		return true
	}
	return !now.Before(pki.RenewBetween(begin, end, jitter(c)))
}

func (t *Tokens) expiry(c *cluster.Cluster) (time.Time, bool) { return c.Credential.Expiry() }

// jitter lies between 0 and 1, and is the same for the same token.
func jitter(c *cluster.Cluster) float64 {
	h := fnv.New32a()
	f := c.Fingerprint()
	_, _ = h.Write(f[:]) // a hash takes everything
	return float64(h.Sum32()) / (1 << 32)
}

func (t *Tokens) renew(ctx context.Context, c *cluster.Cluster) error {
	client, err := t.cfg.Route.client(c.Name)
	if err != nil {
		return err
	}
	begin, _ := c.Credential.Begin()
	end, _ := c.Credential.Expiry()
	lifetime := max(end.Sub(begin), registration.MinTokenLifetime)
	token, err := registration.RequestToken(ctx, client, lifetime)
	if err != nil {
		return fmt.Errorf("the token, which expires at %s, could not be renewed: %w", end.UTC().Format(time.RFC3339), err)
	}
	// Only if the Secret is the one that the old token is from: a later change takes precedence.
	read := &metav1.ObjectMeta{UID: c.UID, ResourceVersion: c.ResourceVersion}
	patch, err := registration.MergePatch(read, map[string]any{"data": map[string][]byte{v1alpha1.SecretKeyToken: []byte(token)}})
	if err != nil {
		return err
	}
	_, err = t.cfg.Secrets.Patch(ctx, c.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: registration.RenewalFieldManager})
	switch {
	case apierrors.IsConflict(err), apierrors.IsNotFound(err):
		return nil // the store gets the Secret as it is now
	case err != nil:
		return fmt.Errorf("the renewed token could not be stored: %w", err)
	}
	t.cfg.Logger.Info("The token of a cluster has been renewed", "cluster", c.Name, "until", registration.ParseToken(token).Expires)
	return nil
}
