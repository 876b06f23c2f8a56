// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package rotation

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/klog/v2"

	"github.com/oam-dev/cluster-gateway/pkg/apis/cluster/v1alpha1"
	"github.com/oam-dev/cluster-gateway/pkg/cluster"
	"github.com/oam-dev/cluster-gateway/pkg/internal/cabundle"
	"github.com/oam-dev/cluster-gateway/pkg/registration"
)

// DefaultUpkeepInterval is how often each cluster is looked at. It varies by a tenth, so that
// clusters are not looked at together.
const DefaultUpkeepInterval = time.Hour

// UpkeepConfig is what Upkeep needs.
type UpkeepConfig struct {
	Clusters Clusters
	Route    Route
	// Secrets are those of the clusters.
	Secrets corev1client.SecretInterface
	// Interval is how often each cluster is looked at. 0 means DefaultUpkeepInterval.
	Interval time.Duration
	// Logger logs changes. Its zero value logs nothing.
	Logger klog.Logger
	// Metrics, if set, record the results of renewals.
	Metrics *Metrics
	// Now is the clock. Nil means time.Now.
	Now func() time.Time
}

// Upkeep keeps what a registration left on both sides as it should be: it follows the changes of
// the cluster's CA, and removes rights that earlier versions gave to the account for callers. It
// does so only for clusters with a credential for maintenance. It is safe for concurrent use.
type Upkeep struct {
	cfg      UpkeepConfig
	renewals renewals

	mu   sync.Mutex
	next map[types.UID]nextUpkeep // by the UID of the cluster's Secret
}

// nextUpkeep is when a cluster is looked at again: at a time, or when there is another request for
// a rotation.
type nextUpkeep struct {
	at      time.Time
	request string
}

var _ renewer = (*Upkeep)(nil)

// NewUpkeep returns an Upkeep that is idle.
func NewUpkeep(cfg UpkeepConfig) *Upkeep {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Interval == 0 {
		cfg.Interval = DefaultUpkeepInterval
	}
	u := &Upkeep{cfg: cfg, next: map[types.UID]nextUpkeep{}}
	u.renewals = newRenewals(u, "check the registration", cfg.Clusters, cfg.Logger, cfg.Now, cfg.Metrics, taskRegistration)
	return u
}

// OnChange subscribes f to clusters whose upkeep fails for the first time, or succeeds again. f
// must not block. OnChange must not be called after Run.
func (u *Upkeep) OnChange(f func(name string)) { u.renewals.subscribe(f) }

// Retry tries again what has failed for a cluster, without the usual wait. Call it when the cluster
// can be reached again, such as when an agent has connected. It does not block.
func (u *Upkeep) Retry(name string) { u.renewals.retry(name) }

// Run looks at all clusters until ctx is done. Only one Run may be active at a time.
func (u *Upkeep) Run(ctx context.Context) error {
	u.renewals.run(ctx)
	return nil
}

// Failure returns why the cluster's CA could not be followed, or nil. Failures to reach the cluster
// are not reported: the probes of the cluster report those.
func (u *Upkeep) Failure(name string) error {
	err := u.renewals.failure(name)
	var early *earlyError
	if errors.As(err, &early) {
		return nil
	}
	return err
}

// due implements renewer.
func (u *Upkeep) due(c *cluster.Cluster) bool {
	now := u.cfg.Now()
	if c.Err() != nil || !c.IsRegistered() || !usable(c.Maintenance(), now) {
		return false
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	next := u.next[c.UID]
	return next.request != c.Rotation.ID || !now.Before(next.at)
}

// expiry implements renewer: nothing here expires.
func (*Upkeep) expiry(*cluster.Cluster) (time.Time, bool) { return time.Time{}, false }

// renew looks at one cluster.
func (u *Upkeep) renew(ctx context.Context, c *cluster.Cluster) error {
	conn, err := u.cfg.Route.connect(c)
	if err != nil {
		return &earlyError{err}
	}
	defer conn.close()
	for _, o := range registration.SharedRights() {
		found, err := registration.Remove(ctx, conn.dyn, o, false)
		if err != nil {
			return &earlyError{fmt.Errorf("remove %s %s: %w", o.GetKind(), o.GetName(), err)}
		}
		if found {
			u.cfg.Logger.Info("Removed rights of the account for callers", "cluster", c.Name, "kind", o.GetKind(), "name", o.GetName())
		}
	}
	switch err := u.followCA(ctx, c, conn); {
	case errors.Is(err, errSecretChanged):
		return nil // it is looked at again at once
	case err != nil:
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.forget()
	interval := u.cfg.Interval
	u.next[c.UID] = nextUpkeep{u.cfg.Now().Add(interval - interval/10 + rand.N(interval/5)), c.Rotation.ID}
	return nil
}

// forget drops clusters that no longer exist. It is called with u.mu held.
func (u *Upkeep) forget() {
	now := u.cfg.Now()
	for uid, next := range u.next {
		if now.After(next.at.Add(u.cfg.Interval)) {
			delete(u.next, uid)
		}
	}
}

// followCA replaces the CAs in the cluster's Secret by those that the cluster publishes, if they
// were read from there when the cluster was registered. During the documented rotation of a
// cluster's CA, the cluster publishes the previous one and the new one for a while. Only a bundle
// that verifies the API server's present certificate replaces the current one, and it is read over
// a verified connection.
func (u *Upkeep) followCA(ctx context.Context, c *cluster.Cluster, conn *connection) error {
	if !c.FollowsCA || c.Insecure || len(c.CAData) == 0 {
		return nil
	}
	config, err := conn.kube.CoreV1().ConfigMaps(registration.AgentNamespace).Get(ctx, registration.RootCAConfigMap, metav1.GetOptions{})
	if err != nil {
		return &earlyError{fmt.Errorf("read the cluster's CA (ConfigMap %s/%s): %w", registration.AgentNamespace, registration.RootCAConfigMap, err)}
	}
	published, _ := cabundle.Parse([]byte(config.Data[corev1.ServiceAccountRootCAKey]))
	current, _ := cabundle.Parse(c.CAData)
	if sameCertificates(published, current) {
		return nil
	}
	if err := verifies(published, conn.serverChain(), c.ServerName, u.cfg.Now()); err != nil {
		return fmt.Errorf("the cluster's CA has changed (ConfigMap %s/%s), and ca.crt in its Secret on the hub was not replaced: the API server's certificate is not signed by the new CA: %w",
			registration.AgentNamespace, registration.RootCAConfigMap, err)
	}
	read := &metav1.ObjectMeta{UID: c.UID, ResourceVersion: c.ResourceVersion}
	patch, err := registration.MergePatch(read, map[string]any{"data": map[string][]byte{v1alpha1.SecretKeyCA: encode(published)}})
	if err != nil {
		return err
	}
	_, err = u.cfg.Secrets.Patch(ctx, c.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: registration.RenewalFieldManager})
	switch {
	case apierrors.IsConflict(err), apierrors.IsNotFound(err):
		return errSecretChanged
	case err != nil:
		return &earlyError{fmt.Errorf("store the cluster's CA: %w", err)}
	}
	u.cfg.Logger.Info("Replaced the CA of a cluster, which has changed there", "cluster", c.Name, "certificates", len(published))
	return nil
}

// errSecretChanged means that the cluster's Secret has changed since it was read.
var errSecretChanged = errors.New("the cluster's Secret has changed")

// maxCAs bounds the number of CAs that are taken over from a cluster. kube-controller-manager
// publishes one or, during a rotation, two or three.
const maxCAs = 32

// verifies returns an error unless one of the CAs verifies the chain of a server.
func verifies(cas, chain []*x509.Certificate, name string, now time.Time) error {
	switch {
	case len(cas) == 0:
		return errors.New("the ConfigMap holds no certificate")
	case len(cas) > maxCAs:
		return fmt.Errorf("the ConfigMap holds %d certificates; at most %d are allowed", len(cas), maxCAs)
	case len(chain) == 0:
		return errors.New("the certificate of the API server is not known")
	}
	options := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), DNSName: name, CurrentTime: now}
	for _, ca := range cas {
		options.Roots.AddCert(ca)
	}
	for _, link := range chain[1:] {
		options.Intermediates.AddCert(link)
	}
	_, err := chain[0].Verify(options)
	return err
}

// sameCertificates is whether two bundles hold the same certificates, in any order.
func sameCertificates(a, b []*x509.Certificate) bool {
	has := func(all []*x509.Certificate, cert *x509.Certificate) bool {
		return slices.ContainsFunc(all, cert.Equal)
	}
	for _, cert := range a {
		if !has(b, cert) {
			return false
		}
	}
	for _, cert := range b {
		if !has(a, cert) {
			return false
		}
	}
	return true
}

// encode encodes certificates in PEM.
func encode(certs []*x509.Certificate) []byte {
	var out bytes.Buffer
	for _, cert := range certs {
		_ = pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}) // a buffer takes everything
	}
	return out.Bytes()
}
