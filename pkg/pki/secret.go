// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"cmp"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
)

// Objects in the gateway's namespace on the hub.
const (
	// CASecret holds the CA of the tunnel.
	CASecret = "cluster-gateway-tunnel-ca"
	// ServingSecret holds the serving pair of the tunnel that the gateway makes.
	ServingSecret = "cluster-gateway-tunnel-serving"
	// GatewayCASecret and GatewayServingSecret hold those of the gateway's own HTTPS endpoint.
	GatewayCASecret      = "cluster-gateway-serving-ca"
	GatewayServingSecret = "cluster-gateway-serving"
	// ConfigMap tells where agents connect (KeyAddress) and what they trust (KeyBundle).
	ConfigMap = "cluster-gateway-tunnel"

	// KeyAddress is host:port.
	KeyAddress = "address"
	// KeyBundle is the bundle of the CA, in PEM.
	KeyBundle = "ca.crt"
)

const (
	labelManagedBy = "app.kubernetes.io/managed-by"
	// ManagedBy is the value of app.kubernetes.io/managed-by on what is made here. Only such a CA is ever replaced.
	ManagedBy = "cluster-gateway"
)

// Options say how a CA that is not there yet is made. The zero value is what is wanted but in tests.
type Options struct {
	// Secret is the name of the CA's; empty means CASecret.
	Secret string
	// Lifetime is the CA's; 0 means DefaultCALifetime.
	Lifetime time.Duration
}

func (o Options) secret() string { return cmp.Or(o.Secret, CASecret) }

// Ensure returns the CA, and makes it if there is none. Whoever is second takes the first one's.
func Ensure(ctx context.Context, secrets corev1client.SecretInterface, o Options) (*Authority, error) {
	a, err := load(ctx, secrets, o.secret())
	if !apierrors.IsNotFound(err) {
		return a, err
	}
	a, err = NewAuthority(o.Lifetime)
	if err != nil {
		return nil, fmt.Errorf("make the CA of the Secret %s: %w", o.secret(), err)
	}
	secret, err := a.named(o.secret())
	if err != nil {
		return nil, err
	}
	_, err = secrets.Create(ctx, secret, metav1.CreateOptions{})
	switch {
	case apierrors.IsAlreadyExists(err):
		return load(ctx, secrets, o.secret())
	case err != nil:
		return nil, fmt.Errorf("create the Secret %s: %w", o.secret(), err)
	}
	return a, nil
}

// Load returns the CA of the tunnel. The error is a NotFound if there is none.
func Load(ctx context.Context, secrets corev1client.SecretInterface) (*Authority, error) {
	return load(ctx, secrets, CASecret)
}

func load(ctx context.Context, secrets corev1client.SecretInterface, name string) (*Authority, error) {
	secret, err := secrets.Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("get the Secret %s: %w", name, err)
	}
	return FromSecret(secret)
}

// FromSecret reads the CA of a Secret.
func FromSecret(secret *corev1.Secret) (*Authority, error) {
	a, err := parseAuthority(secret)
	if err != nil {
		return nil, fmt.Errorf("the Secret %s is no CA: %w", secret.Name, err)
	}
	a.foreign = !ours(secret)
	return a, nil
}

func parseAuthority(secret *corev1.Secret) (*Authority, error) {
	chain, err := ParseCertificates(secret.Data[corev1.TLSCertKey])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", corev1.TLSCertKey, err)
	}
	if !chain[0].IsCA {
		return nil, fmt.Errorf("%s: the certificate of %q is not a CA's", corev1.TLSCertKey, chain[0].Subject.CommonName)
	}
	key, err := parseKey(secret.Data[corev1.TLSPrivateKeyKey])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", corev1.TLSPrivateKeyKey, err)
	}
	if !sameKey(key, chain[0]) {
		return nil, fmt.Errorf("%s is not the key of %s", corev1.TLSPrivateKeyKey, corev1.TLSCertKey)
	}
	bundle := chain
	if text := secret.Data[corev1.ServiceAccountRootCAKey]; len(text) > 0 {
		if bundle, err = ParseCertificates(text); err != nil {
			return nil, fmt.Errorf("%s: %w", corev1.ServiceAccountRootCAKey, err)
		}
	}
	return newAuthority(key, chain, bundle), nil
}

func sameKey(key crypto.Signer, cert *x509.Certificate) bool {
	public, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	return ok && public.Equal(key.Public())
}

// Secret is the CA of the tunnel as the hub keeps it, without a namespace.
func (a *Authority) Secret() (*corev1.Secret, error) { return a.named(CASecret) }

func (a *Authority) named(name string) (*corev1.Secret, error) {
	keyPEM, err := encodeKey(a.reveal())
	if err != nil {
		return nil, err
	}
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{labelManagedBy: ManagedBy}},
		Type:       corev1.SecretTypeTLS,
		Data: map[string][]byte{
			corev1.TLSCertKey:              encodeCerts(a.chain),
			corev1.TLSPrivateKeyKey:        keyPEM,
			corev1.ServiceAccountRootCAKey: a.Bundle(),
		},
	}, nil
}

// ErrNotOurs is that a CA was not made here, and so is not replaced here.
var ErrNotOurs = errors.New("the CA is not managed by " + ManagedBy)

// Rotate replaces the CA by a new one, if it is still the one that signs in the Secret: of two that rotate at once, one wins, and the other
// gets the winner's. It returns what is in the Secret afterwards.
func Rotate(ctx context.Context, secrets corev1client.SecretInterface, current *Authority, o Options) (*Authority, error) {
	secret, err := secrets.Get(ctx, o.secret(), metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("get the Secret %s: %w", o.secret(), err)
	}
	stored, err := FromSecret(secret)
	if err != nil {
		return nil, err
	}
	if !stored.Certificate().Equal(current.Certificate()) {
		return stored, nil
	}
	if !ours(secret) {
		return nil, ErrNotOurs
	}
	next, err := stored.Rotated(o.Lifetime)
	if err != nil {
		return nil, err
	}
	made, err := next.named(o.secret())
	if err != nil {
		return nil, err
	}
	err = patchData(ctx, secrets, secret, made.Data)
	switch {
	case apierrors.IsConflict(err):
		return load(ctx, secrets, o.secret())
	case err != nil:
		return nil, fmt.Errorf("replace the CA in the Secret %s: %w", o.secret(), err)
	}
	return next, nil
}

// patchData replaces keys of a Secret, unless it was changed since it was read: then it fails with a conflict.
func patchData(ctx context.Context, secrets corev1client.SecretInterface, secret *corev1.Secret, data map[string][]byte) error {
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": secret.UID, "resourceVersion": secret.ResourceVersion}, "data": data,
	})
	if err != nil {
		return err
	}
	_, err = secrets.Patch(ctx, secret.Name, types.MergePatchType, patch, metav1.PatchOptions{})
	return err
}

// annotationCertManager is on the Secrets that cert-manager keeps, also on such as were there before.
const annotationCertManager = "cert-manager.io/certificate-name"

// ours is whether a Secret was made here, and so may be changed here.
func ours(secret *corev1.Secret) bool {
	_, others := secret.Annotations[annotationCertManager]
	return secret.Labels[labelManagedBy] == ManagedBy && !others
}
