// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

// KeeperConfig is what a Keeper needs.
type KeeperConfig struct {
	Client    kubernetes.Interface
	Namespace string
	// CASecret and ServingSecret are the names of the Secrets; empty means those of the tunnel.
	CASecret, ServingSecret string
	// Hosts are the names and IP addresses that the serving certificate is for; at least one.
	Hosts []string
	// CALifetime and ServingLifetime are those of what is made; 0 means the defaults.
	CALifetime, ServingLifetime time.Duration
	// Logger is where renewals are reported. Its zero value logs nothing.
	Logger klog.Logger
}

// Keeper has the certificates of a server, that of the tunnel or the gateway's own: it follows their Secrets, in every replica
// ([Keeper.Follow]), and makes and renews them, in the one that leads ([Keeper.Renew]). It is safe for concurrent use.
type Keeper struct {
	cfg KeeperConfig
	// The subscribers do not change once the Keeper runs.
	publish         []func(ctx context.Context, bundle []byte) error
	onTrustChange   []func(*x509.CertPool)
	onServingChange []func()

	mu        sync.RWMutex
	authority *Authority
	serving   *servingPair
	current   *tls.Config // of both; nil until there are both
	// changed is signalled when something has been taken over, for Renew.
	changed chan struct{}
}

// servingPair is what is served.
type servingPair struct {
	tls.Certificate
	certPEM, keyPEM []byte
	ours            bool // and not the user's own
}

// NewKeeper returns a Keeper that has nothing yet.
func NewKeeper(cfg KeeperConfig) *Keeper {
	cfg.CASecret, cfg.ServingSecret = cmp.Or(cfg.CASecret, CASecret), cmp.Or(cfg.ServingSecret, ServingSecret)
	return &Keeper{cfg: cfg, changed: make(chan struct{}, 1)}
}

// OnPublish subscribes f to the bundle that peers must trust. Renew calls f regularly, and always before the CA's new certificates
// are served. The pair is renewed even if f fails. OnPublish must not be called after Renew.
func (k *Keeper) OnPublish(f func(ctx context.Context, bundle []byte) error) {
	k.publish = append(k.publish, f)
}

// OnTrustChange subscribes f to the CAs that agents are verified with. f must not block. OnTrustChange must not be called after
// Make or Follow.
func (k *Keeper) OnTrustChange(f func(*x509.CertPool)) {
	k.onTrustChange = append(k.onTrustChange, f)
}

// OnServingChange calls f each time that the pair that is served changes. f must not block. OnServingChange must not be called
// after Make or Follow.
func (k *Keeper) OnServingChange(f func()) {
	k.onServingChange = append(k.onServingChange, f)
}

// errNotYet refuses peers until the certificates have been read.
var errNotYet = errors.New("the certificates have not been read from the hub yet")

// TLS is a serving configuration that requires agents' certificates, and is always of the Secrets' last state.
func (k *Keeper) TLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"h2"}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: x509.NewCertPool(),
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			k.mu.RLock()
			defer k.mu.RUnlock()
			if k.current == nil {
				return nil, errNotYet
			}
			return k.current, nil
		},
	}
}

// Ready is nil once the certificates are there.
func (k *Keeper) Ready() error {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.current == nil {
		return errNotYet
	}
	return nil
}

// Authority is the CA; nil until it has been read.
func (k *Keeper) Authority() *Authority {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.authority
}

// Serving is the serving certificate; nil until it has been read.
func (k *Keeper) Serving() *x509.Certificate {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.serving == nil {
		return nil
	}
	return k.serving.Leaf
}

// Pair is what is served, in PEM; nil until it has been read.
func (k *Keeper) Pair() (cert, key []byte) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.serving == nil {
		return nil, nil
	}
	return k.serving.certPEM, k.serving.keyPEM
}

// Bundle is what verifies the pair that is served; nil when that is not known, since the pair is the user's own.
func (k *Keeper) Bundle() []byte {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.authority == nil || k.serving == nil || !k.serving.ours {
		return nil
	}
	return k.authority.Bundle()
}

// Follow makes what is not there yet, and follows the Secrets until ctx ends.
func (k *Keeper) Follow(ctx context.Context) error {
	if err := k.ensure(ctx); err != nil {
		return err
	}
	var group sync.WaitGroup
	for name, take := range map[string]func(*corev1.Secret) error{k.cfg.CASecret: k.takeCA, k.cfg.ServingSecret: k.takeServing} {
		group.Go(func() {
			follow(ctx, k.cfg.Client, k.cfg.Namespace, name, func(s *corev1.Secret) {
				if s == nil { // gone; what was there goes on being used until it is put back
					k.signal()
					return
				}
				if err := take(s); err != nil { // likewise
					k.cfg.Logger.Error(err, "A Secret with certificates cannot be used", "secret", s.Name)
				}
			})
		})
	}
	group.Wait()
	return nil
}

// ensure tries until the hub lets it.
func (k *Keeper) ensure(ctx context.Context) error {
	const pause = 2 * time.Second
	for {
		err := k.Make(ctx)
		if err == nil || ctx.Err() != nil {
			return nil
		}
		k.cfg.Logger.Error(err, "Certificates cannot be read or made; trying again", "secret", k.cfg.ServingSecret, "in", pause)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// Make reads the certificates, or makes them if they are not there.
func (k *Keeper) Make(ctx context.Context) error {
	secrets := k.cfg.Client.CoreV1().Secrets(k.cfg.Namespace)
	a, err := Ensure(ctx, secrets, k.options())
	if err != nil {
		return err
	}
	k.setAuthority(a)
	serving, err := secrets.Get(ctx, k.cfg.ServingSecret, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		serving, err = k.createServing(ctx, a)
	}
	if err != nil {
		return fmt.Errorf("the Secret %s: %w", k.cfg.ServingSecret, err)
	}
	return k.takeServing(serving)
}

func (k *Keeper) options() Options {
	return Options{Secret: k.cfg.CASecret, Lifetime: k.cfg.CALifetime}
}

func (k *Keeper) createServing(ctx context.Context, a *Authority) (*corev1.Secret, error) {
	secrets := k.cfg.Client.CoreV1().Secrets(k.cfg.Namespace)
	data, err := k.issueServing(a)
	if err != nil {
		return nil, err
	}
	created, err := secrets.Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: k.cfg.ServingSecret, Labels: map[string]string{labelManagedBy: ManagedBy}},
		Type:       corev1.SecretTypeTLS, Data: data,
	}, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return secrets.Get(ctx, k.cfg.ServingSecret, metav1.GetOptions{})
	}
	return created, err
}

func (k *Keeper) issueServing(a *Authority) (map[string][]byte, error) {
	cert, key, err := a.IssueServing(k.cfg.Hosts, k.cfg.ServingLifetime)
	if err != nil {
		return nil, err
	}
	return map[string][]byte{corev1.TLSCertKey: cert, corev1.TLSPrivateKeyKey: key, corev1.ServiceAccountRootCAKey: a.Bundle()}, nil
}

func (k *Keeper) takeCA(s *corev1.Secret) error {
	a, err := FromSecret(s)
	if err != nil {
		return err
	}
	k.setAuthority(a)
	return nil
}

func (k *Keeper) setAuthority(a *Authority) {
	k.mu.Lock()
	before := k.authority
	k.authority = a
	k.rebuildLocked()
	k.mu.Unlock()
	if before == nil || !bytes.Equal(before.Bundle(), a.Bundle()) {
		k.cfg.Logger.Info("The CA", "secret", k.cfg.CASecret, "ca", a)
		for _, f := range k.onTrustChange {
			f(a.Pool())
		}
		k.signal()
	}
}

func (k *Keeper) takeServing(s *corev1.Secret) error {
	pair := servingPair{certPEM: s.Data[corev1.TLSCertKey], keyPEM: s.Data[corev1.TLSPrivateKeyKey], ours: ours(s)}
	var err error
	if pair.Certificate, err = tls.X509KeyPair(pair.certPEM, pair.keyPEM); err != nil {
		return fmt.Errorf("the Secret %s is no serving pair: %w", s.Name, err)
	}
	k.mu.Lock()
	same := k.serving != nil && k.serving.ours == pair.ours && bytes.Equal(k.serving.certPEM, pair.certPEM) && bytes.Equal(k.serving.keyPEM, pair.keyPEM)
	k.serving = &pair
	k.rebuildLocked()
	k.mu.Unlock()
	if same {
		return nil
	}
	for _, f := range k.onServingChange {
		f()
	}
	k.signal()
	return nil
}

func (k *Keeper) rebuildLocked() {
	if k.authority == nil || k.serving == nil {
		return
	}
	k.current = &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"h2"}, ClientAuth: tls.RequireAndVerifyClientCert,
		ClientCAs: k.authority.Pool(), Certificates: []tls.Certificate{k.serving.Certificate}, SessionTicketsDisabled: true,
	}
}

func (k *Keeper) signal() {
	select {
	case k.changed <- struct{}{}:
	default:
	}
}

// Bounds of the time between two looks at what is to be renewed.
const (
	lookAgain   = 5 * time.Minute
	lookAtLeast = 100 * time.Millisecond
	afterError  = 5 * time.Second
)

// Renew renews the CA and the serving pair in time, and publishes the bundle, until ctx ends. One replica is to do this.
func (k *Keeper) Renew(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-k.changed:
		case <-timer.C:
		}
		next, err := k.renew(ctx)
		wait := max(min(time.Until(next), lookAgain), lookAtLeast)
		if err != nil && ctx.Err() == nil {
			k.cfg.Logger.Error(err, "Certificates cannot be kept; trying again", "secret", k.cfg.ServingSecret, "in", afterError)
			wait = afterError
		}
		timer.Reset(wait)
	}
}

// renew does what is due, and returns when something is due next.
func (k *Keeper) renew(ctx context.Context) (next time.Time, err error) {
	secrets := k.cfg.Client.CoreV1().Secrets(k.cfg.Namespace)
	if err := k.restore(ctx); err != nil {
		return time.Time{}, err
	}
	a, err := load(ctx, secrets, k.cfg.CASecret)
	if err != nil {
		return time.Time{}, err
	}
	caAt := RenewAt(a.Certificate())
	if !time.Now().Before(caAt) {
		switch rotated, err := Rotate(ctx, secrets, a, k.options()); {
		case errors.Is(err, ErrNotOurs):
			// Its owner renews it; health and metrics tell how long it lasts.
			caAt = time.Now().Add(lookAgain)
		case err != nil:
			return time.Time{}, err
		default:
			k.cfg.Logger.Info("The CA has been replaced", "secret", k.cfg.CASecret, "ca", rotated, "before", a)
			a, caAt = rotated, RenewAt(rotated.Certificate())
			k.setAuthority(a)
		}
	}
	// Who cannot be told of a new CA accepts what it issues by the cross-certificate; that is no reason to let the pair end.
	var untold error
	for _, publish := range k.publish {
		if err := publish(ctx, a.Bundle()); err != nil {
			untold = errors.Join(untold, fmt.Errorf("make the CA known: %w", err))
		}
	}
	servingAt, err := k.renewServing(ctx, a)
	if err = errors.Join(untold, err); err != nil {
		return time.Time{}, err
	}
	if servingAt.Before(caAt) {
		return servingAt, nil
	}
	return caAt, nil
}

// restore puts a CA back that was deleted: with another, nobody could connect any more who trusts it. The user's own is the user's to put back:
// it may be about to be replaced.
func (k *Keeper) restore(ctx context.Context) error {
	secrets := k.cfg.Client.CoreV1().Secrets(k.cfg.Namespace)
	_, err := secrets.Get(ctx, k.cfg.CASecret, metav1.GetOptions{})
	a := k.Authority()
	if !apierrors.IsNotFound(err) || a == nil {
		return k.Make(ctx)
	}
	if a.foreign {
		return fmt.Errorf("the Secret %s, with a CA that is not the gateway's, was deleted, and is missing: create it again", k.cfg.CASecret)
	}
	secret, err := a.named(k.cfg.CASecret)
	if err != nil {
		return err
	}
	if _, err := secrets.Create(ctx, secret, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("put the CA of the Secret %s back, which was deleted: %w", k.cfg.CASecret, err)
	}
	k.cfg.Logger.Info("The Secret with the CA was deleted, and has been put back", "secret", k.cfg.CASecret, "ca", a)
	return k.Make(ctx)
}

func (k *Keeper) renewServing(ctx context.Context, a *Authority) (next time.Time, err error) {
	secrets := k.cfg.Client.CoreV1().Secrets(k.cfg.Namespace)
	secret, err := secrets.Get(ctx, k.cfg.ServingSecret, metav1.GetOptions{})
	if err != nil {
		return time.Time{}, err
	}
	if !ours(secret) {
		return time.Now().Add(lookAgain), nil
	}
	if cert, ok := k.serves(secret, a); ok {
		return RenewAt(cert), nil
	}
	data, err := k.issueServing(a)
	if err != nil {
		return time.Time{}, err
	}
	if err := patchData(ctx, secrets, secret, data); err != nil {
		return time.Time{}, fmt.Errorf("renew the Secret %s: %w", k.cfg.ServingSecret, err)
	}
	certs, err := ParseCertificates(data[corev1.TLSCertKey])
	if err != nil {
		return time.Time{}, err
	}
	k.cfg.Logger.Info("The serving certificate has been renewed", "secret", k.cfg.ServingSecret, "until", certs[0].NotAfter)
	return RenewAt(certs[0]), nil
}

// serves is whether a pair can go on being used: for all hosts, by the CA that signs now, and not due.
func (k *Keeper) serves(secret *corev1.Secret, a *Authority) (*x509.Certificate, bool) {
	pair, err := tls.X509KeyPair(secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey])
	if err != nil || pair.Leaf.CheckSignatureFrom(a.Certificate()) != nil || !time.Now().Before(RenewAt(pair.Leaf)) {
		return nil, false
	}
	for _, host := range k.cfg.Hosts {
		if pair.Leaf.VerifyHostname(host) != nil {
			return nil, false
		}
	}
	return pair.Leaf, true
}

// PublishTunnel returns a function that tells whoever registers clusters where agents connect, and what they trust, by the ConfigMap. address is
// host:port; empty: whoever registers clusters has to know it.
func PublishTunnel(client kubernetes.Interface, namespace, address string) func(ctx context.Context, bundle []byte) error {
	maps := client.CoreV1().ConfigMaps(namespace)
	return func(ctx context.Context, bundle []byte) error {
		want := map[string]string{KeyBundle: string(bundle)}
		if address != "" {
			want[KeyAddress] = address
		}
		have, err := maps.Get(ctx, ConfigMap, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			_, err = maps.Create(ctx, &corev1.ConfigMap{
				ObjectMeta: metav1.ObjectMeta{Name: ConfigMap, Labels: map[string]string{labelManagedBy: ManagedBy}}, Data: want,
			}, metav1.CreateOptions{})
			return err
		}
		if err != nil {
			return err
		}
		same := true
		for key, value := range want {
			same = same && have.Data[key] == value
		}
		if same {
			return nil
		}
		patch, err := json.Marshal(map[string]any{"data": want})
		if err != nil {
			return err
		}
		_, err = maps.Patch(ctx, ConfigMap, types.MergePatchType, patch, metav1.PatchOptions{})
		return err
	}
}

// follow calls take for one Secret, as it is and whenever it changes, until ctx ends; with nil when it is deleted.
func follow(ctx context.Context, client kubernetes.Interface, namespace, name string, take func(*corev1.Secret)) {
	secrets := client.CoreV1().Secrets(namespace)
	only := fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()
	lw := cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			options.FieldSelector = only
			return secrets.List(ctx, options)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.FieldSelector = only
			return secrets.Watch(ctx, options)
		},
	}, client)
	cache.NewReflectorWithOptions(lw, &corev1.Secret{}, sink{name, take}, cache.ReflectorOptions{Name: name}).RunWithContext(ctx)
}

// sink is what a reflector writes to.
type sink struct {
	name string
	take func(*corev1.Secret)
}

var _ cache.ReflectorStore = sink{}

func (s sink) Add(obj any) error { return s.Update(obj) }
func (s sink) Update(obj any) error {
	// The name is looked at as well: fakes do not know field selectors.
	if secret, ok := obj.(*corev1.Secret); ok && secret.Name == s.name {
		s.take(secret)
	}
	return nil
}
func (s sink) Delete(obj any) error {
	if secret, ok := obj.(*corev1.Secret); ok && secret.Name == s.name {
		s.take(nil)
	}
	return nil
}
func (s sink) Replace(list []any, _ string) error {
	for _, obj := range list {
		_ = s.Update(obj) // never fails
	}
	return nil
}
func (s sink) Resync() error { return nil }
