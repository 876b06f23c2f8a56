// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package rotation

import (
	"context"
	"errors"
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
	// RenewAfter, if set, is the age at which a token is renewed, whatever its lifetime is. 0 means
	// that it depends on the lifetime.
	RenewAfter time.Duration
	// Logger logs renewals. Its zero value logs nothing.
	Logger klog.Logger
	// Metrics, if set, record the results of renewals.
	Metrics *Metrics
	// Now is the clock. Nil means time.Now.
	Now func() time.Time
}

// Tokens renews the tokens of both accounts that the gateway has in a cluster. For a cluster that
// has only one credential, it creates the account for maintenance with the next renewal, if the
// access of callers suffices for that; otherwise it renews the one token. It is safe for concurrent
// use.
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
	t.renewals = newRenewals(t, "renew tokens", cfg.Clusters, cfg.Logger, cfg.Now, cfg.Metrics, taskTokens)
	return t
}

// OnChange subscribes f to clusters whose renewal fails for the first time, or succeeds again. f
// must not block. OnChange must not be called after Run.
func (t *Tokens) OnChange(f func(name string)) { t.renewals.subscribe(f) }

// Retry tries again what has failed for a cluster, without the usual wait. Call it when the cluster
// can be reached again, such as when an agent has connected. It does not block.
func (t *Tokens) Retry(name string) { t.renewals.retry(name) }

// Run renews until ctx is done, and waits for renewals in progress. Only one Run may be active at a
// time.
func (t *Tokens) Run(ctx context.Context) error {
	t.renewals.run(ctx)
	return nil
}

// Failure returns why the tokens of a cluster could not be renewed, or nil.
func (t *Tokens) Failure(name string) error { return t.renewals.failure(name) }

// due is whether a token must be renewed now.
func (t *Tokens) due(c *cluster.Cluster) bool {
	if c.Err() != nil || !c.IsRegistered() {
		return false
	}
	if now := t.cfg.Now(); !usable(c.Maintenance(), now) {
		// Only the token for callers can renew itself, and not once it has expired.
		return usable(c.Credential, now) && (c.Rotation.WantsTokens() || t.renewNow(c, c.Credential))
	}
	return c.Rotation.WantsTokens() || t.renewNow(c, c.Credential) || t.renewNow(c, c.Maintenance())
}

// renewNow is whether it is time to renew a token. It is false if the token does not say when it
// expires.
func (t *Tokens) renewNow(c *cluster.Cluster, credential cluster.Credential) bool {
	begin, begins := credential.Begin()
	end, ends := credential.Expiry()
	if !begins || !ends {
		return false
	}
	now := t.cfg.Now()
	if t.cfg.RenewAfter > 0 && !now.Before(begin.Add(t.cfg.RenewAfter)) {
		return true
	}
	return !now.Before(pki.RenewBetween(begin, end, jitter(c)))
}

// expiry is when the token for callers expires.
func (t *Tokens) expiry(c *cluster.Cluster) (time.Time, bool) { return c.Credential.Expiry() }

// jitter spreads renewals of tokens that were issued together. It is constant for one version of a
// cluster.
func jitter(c *cluster.Cluster) float64 {
	h := fnv.New32a()
	f := c.Fingerprint()
	_, _ = h.Write(f[:]) // a hash takes everything
	return float64(h.Sum32()) / (1 << 32)
}

// renew replaces the tokens of a cluster.
func (t *Tokens) renew(ctx context.Context, c *cluster.Cluster) error {
	var issued tokens
	var err error
	shared := !usable(c.Maintenance(), t.cfg.Now())
	if shared {
		issued, err = t.separate(ctx, c)
	} else {
		issued, err = t.request(ctx, c)
	}
	if err != nil && c.Rotation.WantsTokens() {
		t.renewals.reportFailure(ctx, t.cfg.Secrets, c, err)
	}
	if err != nil {
		if end, known := c.Credential.Expiry(); known {
			return fmt.Errorf("the token, which expires at %s, could not be renewed: %w", end.UTC().Format(time.RFC3339), err)
		}
		return fmt.Errorf("the token could not be renewed: %w", err)
	}
	stored, err := t.store(ctx, c, issued)
	if err != nil || !stored {
		return err
	}
	t.cfg.Logger.Info("Renewed the tokens of a cluster", "cluster", c.Name, "expires", registration.ParseToken(issued.callers).Expires)
	if shared && issued.maintenance != "" {
		t.cfg.Logger.Info("Separated the gateway's credential for maintenance from the one for callers", "cluster", c.Name)
	}
	return nil
}

// tokens are new tokens of a cluster. maintenance is empty if there is no account for maintenance.
type tokens struct{ callers, maintenance string }

// request requests the tokens of both accounts.
func (t *Tokens) request(ctx context.Context, c *cluster.Cluster) (tokens, error) {
	conn, err := t.cfg.Route.connect(c)
	if err != nil {
		return tokens{}, err
	}
	defer conn.close()
	return t.requestBoth(ctx, c, conn)
}

// separate creates the account for maintenance with the credential for callers, and requests the
// tokens of both accounts. If that credential may not do so, it requests only a token of the
// account for callers. [Upkeep] removes the rights that the account for callers had for
// maintenance.
func (t *Tokens) separate(ctx context.Context, c *cluster.Cluster) (tokens, error) {
	conn, err := t.cfg.Route.connectShared(c)
	if err != nil {
		return tokens{}, err
	}
	defer conn.close()
	objects, err := registration.AgentBase(registration.IsGatewayAccount)
	if err != nil {
		return tokens{}, err
	}
	for _, o := range objects {
		_, err := registration.ServerSideApply(ctx, conn.dyn, o, false)
		if apierrors.IsForbidden(err) {
			token, err := t.requestOne(ctx, c, conn, registration.GatewayAccount)
			return tokens{callers: token}, err
		}
		if err != nil {
			return tokens{}, fmt.Errorf("create an account for maintenance in the cluster: apply %s %s: %w", o.GetKind(), o.GetName(), err)
		}
	}
	return t.requestBoth(ctx, c, conn)
}

func (t *Tokens) requestBoth(ctx context.Context, c *cluster.Cluster, conn *connection) (issued tokens, err error) {
	if issued.maintenance, err = t.requestOne(ctx, c, conn, registration.MaintenanceAccount); err != nil {
		return issued, err
	}
	issued.callers, err = t.requestOne(ctx, c, conn, registration.GatewayAccount)
	return issued, err
}

// requestOne requests a token. Its lifetime is that of the token for callers, unless somebody asked
// for another one.
func (t *Tokens) requestOne(ctx context.Context, c *cluster.Cluster, conn *connection, account string) (string, error) {
	lifetime := registration.DefaultTokenLifetime
	begin, begins := c.Credential.Begin()
	end, ends := c.Credential.Expiry()
	if begins && ends {
		lifetime = end.Sub(begin)
	}
	if wanted := c.Rotation.TokenLifetime.Duration; c.Rotation.WantsTokens() && wanted > 0 {
		lifetime = wanted
	}
	lifetime = max(lifetime, registration.MinTokenLifetime)
	token, err := registration.RequestToken(ctx, conn.kube, account, lifetime)
	if err != nil {
		return "", fmt.Errorf("request a token of ServiceAccount %s/%s: %w", registration.AgentNamespace, account, err)
	}
	if err := t.checkIssued(token); err != nil {
		return "", fmt.Errorf("the cluster issued a token of ServiceAccount %s/%s that cannot be used: %w", registration.AgentNamespace, account, err)
	}
	return token, nil
}

// minRenewalInterval is how long a new token must be good before it has to be renewed.
// kube-apiserver issues no token for less than 10 minutes, so only a cluster that misbehaves, or a
// clock that is far off, violates it. Without it, such a cluster would have the hub's Secret
// written in each interval.
const minRenewalInterval = time.Minute

// checkIssued returns an error for a token that must not be stored. Its text is the same for each
// attempt.
func (t *Tokens) checkIssued(token string) error {
	if err := cluster.CheckToken(token); err != nil {
		return err
	}
	claims := registration.ParseToken(token)
	if claims.Expires.IsZero() {
		return errors.New("it does not say when it expires")
	}
	if !t.cfg.Now().Add(minRenewalInterval).Before(pki.RenewBetween(claims.IssuedAt, claims.Expires, 1)) {
		return fmt.Errorf("it would have to be renewed within %s. If the cluster is in order, the clocks of the cluster and the gateway differ", minRenewalInterval)
	}
	return nil
}

// store writes tokens to the cluster's Secret, unless it has changed since the cluster was read: a
// later change takes precedence.
func (t *Tokens) store(ctx context.Context, c *cluster.Cluster, issued tokens) (stored bool, err error) {
	data := map[string][]byte{v1alpha1.SecretKeyToken: []byte(issued.callers)}
	if issued.maintenance != "" {
		data[v1alpha1.SecretKeyMaintenanceToken] = []byte(issued.maintenance)
	}
	change := map[string]any{"data": data}
	if c.Rotation.WantsTokens() {
		change["metadata"] = map[string]any{"annotations": map[string]string{v1alpha1.AnnotationRotatedTokens: c.Rotation.ID}}
	}
	read := &metav1.ObjectMeta{UID: c.UID, ResourceVersion: c.ResourceVersion}
	patch, err := registration.MergePatch(read, change)
	if err != nil {
		return false, err
	}
	_, err = t.cfg.Secrets.Patch(ctx, c.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: registration.RenewalFieldManager})
	switch {
	case apierrors.IsConflict(err), apierrors.IsNotFound(err):
		return false, nil // the store gets the Secret as it is now
	case err != nil:
		return false, fmt.Errorf("the renewed token could not be stored: %w", err)
	}
	return true, nil
}
