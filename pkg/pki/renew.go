// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The time between two checks of the certificates.
const (
	maxCheckInterval = 5 * time.Minute
	minCheckInterval = 100 * time.Millisecond
	retryInterval    = 5 * time.Second
)

// Renew renews the CA and the serving certificate in time and publishes the bundle, until ctx ends.
// Only the leader may run it.
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
		wait := max(min(time.Until(next), maxCheckInterval), minCheckInterval)
		if err != nil && ctx.Err() == nil {
			k.cfg.Logger.Error(err, "Failed to check or renew certificates, will retry", "secret", k.cfg.ServingSecret, "after", retryInterval)
			wait = retryInterval
		}
		timer.Reset(wait)
	}
}

// renew renews what is due. It returns when the next renewal is due.
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
		options := k.options()
		// The CA of agents is signed first: a certificate that an agent gets because of the new CA has to
		// be one that the new CA verifies.
		options.beforeRotate = func(next *Authority) error {
			_, err := k.keepAgents(ctx, next, false)
			return err
		}
		switch rotated, err := Rotate(ctx, secrets, a, options); {
		case errors.Is(err, ErrNotManaged):
			// Its owner renews it. Health and metrics report when it expires.
			caAt = time.Now().Add(maxCheckInterval)
		case err != nil:
			return time.Time{}, err
		default:
			k.cfg.Logger.Info("Replaced the CA", "secret", k.cfg.CASecret, "ca", rotated, "previous", a)
			a, caAt = rotated, RenewAt(rotated.Certificate())
			k.setAuthority(a)
		}
	}
	// If the CA of agents cannot be renewed, the serving certificate is still renewed.
	agentsAt, agentsErr := k.keepAgents(ctx, a, true)
	if agentsAt.IsZero() {
		agentsAt = caAt
	}
	// If the new CA cannot be published, the serving certificate is still renewed before it
	// expires: peers that do not know the new CA accept the certificate because of the
	// cross-certificate.
	var publishErr error
	for _, publish := range k.publish {
		if err := publish(ctx, a.Bundle()); err != nil {
			publishErr = errors.Join(publishErr, fmt.Errorf("publish the CA bundle: %w", err))
		}
	}
	servingAt, err := k.renewServing(ctx, a)
	if err = errors.Join(publishErr, agentsErr, err); err != nil {
		return time.Time{}, err
	}
	return slices.MinFunc([]time.Time{caAt, servingAt, agentsAt}, time.Time.Compare), nil
}

// restore creates the CA's Secret again if it was deleted: with a new CA, no peer that trusts the
// old one could connect any more. It does not restore a CA that the user provides, because the user
// may be about to replace it.
func (k *Keeper) restore(ctx context.Context) error {
	nothing := func(*Authority) error { return nil } // renew looks after the CA of agents
	secrets := k.cfg.Client.CoreV1().Secrets(k.cfg.Namespace)
	_, err := secrets.Get(ctx, k.cfg.CASecret, metav1.GetOptions{})
	a := k.Authority()
	if !apierrors.IsNotFound(err) || a == nil {
		return k.loadOrCreate(ctx, nothing)
	}
	if a.userProvided {
		return fmt.Errorf("the Secret %s was deleted; it holds a CA that the gateway does not manage, so create it again", k.cfg.CASecret)
	}
	secret, err := a.secretNamed(k.cfg.CASecret)
	if err != nil {
		return err
	}
	if _, err := secrets.Create(ctx, secret, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("restore the deleted Secret %s with the CA: %w", k.cfg.CASecret, err)
	}
	k.cfg.Logger.Info("Restored the deleted Secret with the CA", "secret", k.cfg.CASecret, "ca", a)
	return k.loadOrCreate(ctx, nothing)
}

func (k *Keeper) renewServing(ctx context.Context, a *Authority) (next time.Time, err error) {
	secrets := k.cfg.Client.CoreV1().Secrets(k.cfg.Namespace)
	secret, err := secrets.Get(ctx, k.cfg.ServingSecret, metav1.GetOptions{})
	if err != nil {
		return time.Time{}, err
	}
	if !managed(secret) {
		return time.Now().Add(maxCheckInterval), nil
	}
	if cert, ok := k.usable(secret, a); ok {
		return RenewAt(cert), nil
	}
	data, err := k.issueServing(a)
	if err != nil {
		return time.Time{}, err
	}
	if err := patchData(ctx, secrets, secret, data); err != nil {
		return time.Time{}, fmt.Errorf("renew the certificate in the Secret %s: %w", k.cfg.ServingSecret, err)
	}
	certs, err := ParseCertificates(data[corev1.TLSCertKey])
	if err != nil {
		return time.Time{}, err
	}
	k.cfg.Logger.Info("Renewed the serving certificate", "secret", k.cfg.ServingSecret, "expires", certs[0].NotAfter)
	return RenewAt(certs[0]), nil
}

// usable returns the serving certificate in the Secret. It reports false if the certificate has to
// be replaced: because it does not cover all hosts, because another CA issued it, or because it is
// due for renewal.
func (k *Keeper) usable(secret *corev1.Secret, a *Authority) (*x509.Certificate, bool) {
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
