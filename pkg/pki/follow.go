// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// loadRetry is the pause between two attempts to read or create the certificates at the start.
const loadRetry = 2 * time.Second

// Follow creates the certificates if there are none. Then it follows their Secrets until ctx ends.
func (k *Keeper) Follow(ctx context.Context) error {
	for {
		err := k.LoadOrCreate(ctx)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return nil
		}
		k.cfg.Logger.Error(err, "Failed to read or create certificates, will retry", "secret", k.cfg.ServingSecret, "after", loadRetry)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(loadRetry):
		}
	}
	var group sync.WaitGroup
	follow := map[string]func(*corev1.Secret) error{k.cfg.CASecret: k.setAuthorityFrom, k.cfg.ServingSecret: k.setServingFrom}
	if k.cfg.AgentsCASecret != "" {
		follow[k.cfg.AgentsCASecret] = k.setAgentsFrom
	}
	for name, set := range follow {
		group.Go(func() {
			followSecret(ctx, k.cfg.Client, k.cfg.Namespace, name, func(s *corev1.Secret) {
				// While a Secret is missing or invalid, the last valid certificates stay in use.
				if s == nil {
					k.signal()
					return
				}
				if err := set(s); err != nil {
					k.cfg.Logger.Error(err, "Ignoring an invalid Secret with certificates", "secret", s.Name)
				}
			})
		})
	}
	group.Wait()
	return nil
}

// LoadOrCreate reads the certificates, and creates those that do not exist.
func (k *Keeper) LoadOrCreate(ctx context.Context) error {
	return k.loadOrCreate(ctx, func(a *Authority) error {
		_, err := k.keepAgents(ctx, a, false)
		return err
	})
}

// loadOrCreate is LoadOrCreate. It calls loadAgents between the CA and the serving certificate: no
// connection is accepted before all are known.
func (k *Keeper) loadOrCreate(ctx context.Context, loadAgents func(*Authority) error) error {
	secrets := k.cfg.Client.CoreV1().Secrets(k.cfg.Namespace)
	a, err := Ensure(ctx, secrets, k.options())
	if err != nil {
		return err
	}
	k.setAuthority(a)
	if err := loadAgents(a); err != nil {
		return err
	}
	serving, err := secrets.Get(ctx, k.cfg.ServingSecret, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		serving, err = k.createServing(ctx, a)
	}
	if err != nil {
		return fmt.Errorf("the Secret %s: %w", k.cfg.ServingSecret, err)
	}
	return k.setServingFrom(serving)
}

// keepAgents reads the CA of agents, or creates it if there is none. With rotate, it also replaces
// it if that is due. It returns when that is the next time, or the zero time if there is no CA of
// agents. If it cannot be used, the tunnel's CA issues the certificates of agents: no agent is
// refused for that reason.
func (k *Keeper) keepAgents(ctx context.Context, a *Authority, rotate bool) (next time.Time, err error) {
	if k.cfg.AgentsCASecret == "" || !a.signsAgents() {
		return time.Time{}, nil
	}
	k.mu.RLock()
	known := k.agents
	k.mu.RUnlock()
	agents, err := keepAgents(ctx, k.cfg.Client.CoreV1().Secrets(k.cfg.Namespace), a, known, k.cfg.CALifetime, rotate)
	switch {
	case err == nil:
	case errors.Is(err, errUnusable), apierrors.IsForbidden(err):
		k.cfg.Logger.Error(err, "The tunnel's CA issues the certificates of agents, because their own CA cannot be used", "secret", k.cfg.AgentsCASecret)
		return time.Time{}, nil
	default:
		return time.Time{}, err
	}
	if rotate && known != nil && !known.Certificate().Equal(agents.Certificate()) {
		k.cfg.Logger.Info("Replaced the CA", "secret", k.cfg.AgentsCASecret, "ca", agents, "previous", known)
	}
	k.setAgents(agents)
	return RenewAt(agents.Certificate()), nil
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
	cert, key, err := a.issueServing(k.cfg.Hosts, k.cfg.Organization, k.cfg.ServingLifetime)
	if err != nil {
		return nil, err
	}
	return map[string][]byte{corev1.TLSCertKey: cert, corev1.TLSPrivateKeyKey: key, corev1.ServiceAccountRootCAKey: a.Bundle()}, nil
}

// followSecret calls handle with the current state of one Secret and with each later state, until
// ctx ends. It calls handle with nil when the Secret is deleted.
func followSecret(ctx context.Context, client kubernetes.Interface, namespace, name string, handle func(*corev1.Secret)) {
	secrets := client.CoreV1().Secrets(namespace)
	byName := fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()
	lw := cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			options.FieldSelector = byName
			return secrets.List(ctx, options)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.FieldSelector = byName
			return secrets.Watch(ctx, options)
		},
	}, client)
	cache.NewReflectorWithOptions(lw, &corev1.Secret{}, secretHandler{name, handle}, cache.ReflectorOptions{Name: name}).RunWithContext(ctx)
}

// secretHandler receives the changes that a reflector finds.
type secretHandler struct {
	name   string
	handle func(*corev1.Secret)
}

var _ cache.ReflectorStore = secretHandler{}

func (s secretHandler) Add(obj any) error { return s.Update(obj) }
func (s secretHandler) Update(obj any) error {
	// The name is compared because fake clients ignore field selectors.
	if secret, ok := obj.(*corev1.Secret); ok && secret.Name == s.name {
		s.handle(secret)
	}
	return nil
}
func (s secretHandler) Delete(obj any) error {
	if secret, ok := obj.(*corev1.Secret); ok && secret.Name == s.name {
		s.handle(nil)
	}
	return nil
}
func (s secretHandler) Replace(list []any, _ string) error {
	for _, obj := range list {
		_ = s.Update(obj) // never fails
	}
	return nil
}
func (s secretHandler) Resync() error { return nil }
