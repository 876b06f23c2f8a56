// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package rotation

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"net/http"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	"k8s.io/utils/ptr"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/pki"
)

// Whom the gateway is in a cluster that agent-bootstrap registered (manifests/konnectivity/agent).
const (
	registrar   = "agent-bootstrap"
	accountName = "cluster-gateway"
)

const (
	// lookInterval is how often is looked for what is due; it costs no request.
	lookInterval = 2 * time.Second
	// attemptTimeout bounds one renewal, and concurrency how many there are at a time.
	attemptTimeout = 15 * time.Second
	concurrency    = 8
	// minLifetime is the shortest that kube-apiserver gives out.
	minLifetime = 10 * time.Minute
)

// Config is what Tokens needs.
type Config struct {
	// Clusters lists those that there are, from memory.
	Clusters interface{ List() []*cluster.Cluster }
	// Route sends requests to a cluster with its credential.
	Route func(name string) http.RoundTripper
	// Secrets are those of the clusters.
	Secrets corev1client.SecretInterface
	// Changed, if set, is told that the outcome for a cluster is another.
	Changed func(name string)
	// Logger is where renewals are reported. Its zero value logs nothing.
	Logger klog.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Tokens renews tokens. It is safe for concurrent use.
type Tokens struct {
	cfg Config

	mu     sync.Mutex
	failed map[string]failure
}

// failure is a renewal that failed, of one version of a cluster.
type failure struct {
	err         error
	fingerprint cluster.Fingerprint
	again       time.Time
}

// NewTokens returns a Tokens that is idle.
func NewTokens(cfg Config) *Tokens {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Tokens{cfg: cfg, failed: map[string]failure{}}
}

// Run renews until ctx ends, and waits for what is under way. It must not be called twice at a time.
func (t *Tokens) Run(ctx context.Context) error {
	ticker := time.NewTicker(lookInterval)
	defer ticker.Stop()
	for {
		t.look(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// Failures is why credentials of a cluster could not be renewed, by the type of the condition that they belong to.
func (t *Tokens) Failures(name string) map[string]error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f, ok := t.failed[name]; ok {
		return map[string]error{v1alpha1.ConditionCredentialValid: f.err}
	}
	return nil
}

// look renews what is due.
func (t *Tokens) look(ctx context.Context) {
	clusters := t.cfg.Clusters.List()
	t.forget(clusters)
	slots := make(chan struct{}, concurrency)
	var group sync.WaitGroup
	for _, c := range clusters {
		if ctx.Err() != nil {
			break
		}
		if !t.due(c) {
			continue
		}
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			t.settle(ctx, c, t.renew(ctx, c))
		})
	}
	group.Wait()
}

// forget drops failures of clusters that are gone or have another credential by now.
func (t *Tokens) forget(clusters []*cluster.Cluster) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.failed) == 0 {
		return
	}
	still := map[string]failure{}
	for _, c := range clusters {
		if f, ok := t.failed[c.Name]; ok && f.fingerprint == c.Fingerprint() {
			still[c.Name] = f
		}
	}
	t.failed = still
}

// due is whether a cluster's token is to be renewed now. One that has ended cannot be renewed with itself.
func (t *Tokens) due(c *cluster.Cluster) bool {
	if c.Err() != nil || c.ManagedBy != registrar || c.Credential.Type != v1alpha1.CredentialTypeServiceAccountToken {
		return false
	}
	begin, begins := c.Credential.Begin()
	end, ends := c.Credential.Expiry()
	now := t.cfg.Now()
	if !begins || !ends || !now.Before(end) || now.Before(pki.RenewBetween(begin, end, jitter(c))) {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	f, failed := t.failed[c.Name]
	return !failed || !now.Before(f.again)
}

// jitter lies between 0 and 1, and is the same for the same token.
func jitter(c *cluster.Cluster) float64 {
	h := fnv.New32a()
	f := c.Fingerprint()
	_, _ = h.Write(f[:]) // a hash takes everything
	return float64(h.Sum32()) / (1 << 32)
}

func (t *Tokens) renew(ctx context.Context, c *cluster.Cluster) error {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	client, err := kubernetes.NewForConfig(&rest.Config{
		Host: "https://" + c.Name, Transport: t.cfg.Route(c.Name), QPS: -1,
		ContentConfig: rest.ContentConfig{ContentType: runtime.ContentTypeJSON}, // whatever speaks the API speaks this
	})
	if err != nil {
		return err
	}
	begin, _ := c.Credential.Begin()
	end, _ := c.Credential.Expiry()
	lifetime := max(end.Sub(begin), minLifetime)
	answer, err := client.CoreV1().ServiceAccounts(AgentNamespace).CreateToken(ctx, accountName, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: ptr.To(int64(lifetime.Seconds()))},
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("the token, which ends at %s, could not be renewed: %w", end.UTC().Format(time.RFC3339), err)
	}
	// Only on the Secret that the old token is from: whoever has changed it since knows better.
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": c.UID, "resourceVersion": c.ResourceVersion},
		"data":     map[string][]byte{"token": []byte(answer.Status.Token)},
	})
	if err != nil {
		return err
	}
	_, err = t.cfg.Secrets.Patch(ctx, c.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager})
	switch {
	case apierrors.IsConflict(err), apierrors.IsNotFound(err):
		return nil // the store will tell what it is now
	case err != nil:
		return fmt.Errorf("the renewed token could not be stored: %w", err)
	}
	t.cfg.Logger.Info("The token of a cluster has been renewed", "cluster", c.Name, "until", answer.Status.ExpirationTimestamp)
	return nil
}

// settle remembers the outcome. What failed is tried again after a minute, or sooner when there is less time.
func (t *Tokens) settle(ctx context.Context, c *cluster.Cluster, err error) {
	if ctx.Err() != nil {
		return
	}
	t.mu.Lock()
	_, before := t.failed[c.Name]
	delete(t.failed, c.Name)
	if err != nil {
		now := t.cfg.Now()
		end, _ := c.Credential.Expiry()
		t.failed[c.Name] = failure{err: err, fingerprint: c.Fingerprint(), again: now.Add(min(time.Minute, max(time.Second, end.Sub(now)/8)))}
	}
	t.mu.Unlock()
	if err != nil {
		t.cfg.Logger.Info("A credential could not be renewed", "cluster", c.Name, "err", err)
	}
	if t.cfg.Changed != nil && before != (err != nil) {
		t.cfg.Changed(c.Name)
	}
}
