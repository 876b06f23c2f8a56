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

	"github.com/oam-dev/cluster-gateway/pkg/internal/cabundle"
)

// Names of the objects in the gateway's namespace on the hub.
const (
	// CASecret holds the CA of the tunnel.
	CASecret = "cluster-gateway-tunnel-ca"
	// AgentsCASecret holds the CA of agents' certificates.
	AgentsCASecret = "cluster-gateway-agents-ca"
	// ServingSecret holds the serving certificate of the tunnel and its key.
	ServingSecret = "cluster-gateway-tunnel-serving"
	// GatewayCASecret and GatewayServingSecret are the same for the gateway's own HTTPS endpoint.
	GatewayCASecret      = "cluster-gateway-serving-ca"
	GatewayServingSecret = "cluster-gateway-serving"
	// PeerCASecret and PeerSecret are the same for the connections between replicas. The certificate
	// in PeerSecret is for both ends of them.
	PeerCASecret = "cluster-gateway-peers-ca"
	PeerSecret   = "cluster-gateway-peers"
	// ConfigMap holds the address that agents connect to (KeyAddress) and the CAs that they trust
	// (KeyBundle).
	ConfigMap = "cluster-gateway-tunnel"

	// KeyAddress is the key of the address, host:port.
	KeyAddress = "address"
	// KeyBundle is the key of the CA bundle, in PEM.
	KeyBundle = "ca.crt"
)

const (
	labelManagedBy = "app.kubernetes.io/managed-by"
	// ManagedBy is the value of the label app.kubernetes.io/managed-by on the objects that the
	// gateway creates. The gateway never replaces a CA without it.
	ManagedBy = "cluster-gateway"
)

// Options configure a new CA. The zero value creates the CA of the tunnel with the default
// lifetime.
type Options struct {
	// Secret is the name of the Secret with the CA. Empty means CASecret.
	Secret string
	// Lifetime is the lifetime of the CA. 0 means DefaultCALifetime.
	Lifetime time.Duration
	// beforeRotate, if set, is called with a successor before it is stored.
	beforeRotate func(next *Authority) error
}

func (o Options) secret() string { return cmp.Or(o.Secret, CASecret) }

// Ensure returns the CA, and creates it if there is none. If another process creates it at the same
// time, Ensure returns the CA of the first one.
func Ensure(ctx context.Context, secrets corev1client.SecretInterface, o Options) (*Authority, error) {
	a, err := load(ctx, secrets, o.secret())
	if !apierrors.IsNotFound(err) {
		return a, err
	}
	a, err = NewAuthority(o.Lifetime)
	if err != nil {
		return nil, fmt.Errorf("create the CA for the Secret %s: %w", o.secret(), err)
	}
	secret, err := a.secretNamed(o.secret())
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

// Load returns the CA of the tunnel, which issues the certificates of agents from their own CA if
// there is one. It returns a NotFound error if there is no CA of the tunnel.
func Load(ctx context.Context, secrets corev1client.SecretInterface) (*Authority, error) {
	a, err := load(ctx, secrets, CASecret)
	if err != nil || a.userProvided {
		return a, err
	}
	agents, err := loadAgents(ctx, secrets)
	if err != nil {
		return nil, err
	}
	return a.withAgents(agents), nil
}

func load(ctx context.Context, secrets corev1client.SecretInterface, name string) (*Authority, error) {
	secret, err := secrets.Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("get the Secret %s: %w", name, err)
	}
	return FromSecret(secret)
}

// FromSecret parses the CA in a Secret.
func FromSecret(secret *corev1.Secret) (*Authority, error) {
	a, err := parseAuthority(secret)
	if err != nil {
		return nil, fmt.Errorf("the Secret %s does not hold a valid CA: %w", secret.Name, err)
	}
	a.userProvided = !managed(secret)
	a.refuseTunnelCA = secret.Name == AgentsCASecret && secret.Annotations[AnnotationTunnelCA] == RefuseTunnelCA
	return a, nil
}

func parseAuthority(secret *corev1.Secret) (*Authority, error) {
	chain, err := ParseCertificates(secret.Data[corev1.TLSCertKey])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", corev1.TLSCertKey, err)
	}
	if !chain[0].IsCA {
		return nil, fmt.Errorf("%s: the certificate of %q is not a CA certificate", corev1.TLSCertKey, chain[0].Subject.CommonName)
	}
	key, err := parseKey(secret.Data[corev1.TLSPrivateKeyKey])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", corev1.TLSPrivateKeyKey, err)
	}
	if !sameKey(key, chain[0]) {
		return nil, fmt.Errorf("the key in %s does not belong to the certificate in %s", corev1.TLSPrivateKeyKey, corev1.TLSCertKey)
	}
	bundle := chain
	if text := secret.Data[corev1.ServiceAccountRootCAKey]; len(text) > 0 {
		var skipped cabundle.Skipped
		if bundle, skipped = cabundle.Parse(text); len(bundle) == 0 {
			return nil, fmt.Errorf("%s: no certificate that can be used: %s", corev1.ServiceAccountRootCAKey, cmp.Or(skipped.String(), "no PEM block"))
		}
	}
	return newAuthority(key, chain, bundle), nil
}

func sameKey(key crypto.Signer, cert *x509.Certificate) bool {
	public, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	return ok && public.Equal(key.Public())
}

// Secret returns the Secret in which the hub stores the CA of the tunnel. It has no namespace.
func (a *Authority) Secret() (*corev1.Secret, error) { return a.secretNamed(CASecret) }

func (a *Authority) secretNamed(name string) (*corev1.Secret, error) {
	keyPEM, err := encodeKey(a.reveal())
	if err != nil {
		return nil, err
	}
	meta := metav1.ObjectMeta{Name: name, Labels: map[string]string{labelManagedBy: ManagedBy}}
	if a.refuseTunnelCA {
		meta.Annotations = map[string]string{AnnotationTunnelCA: RefuseTunnelCA}
	}
	return &corev1.Secret{
		ObjectMeta: meta,
		Type:       corev1.SecretTypeTLS,
		Data: map[string][]byte{
			corev1.TLSCertKey:              encodeCerts(a.chain),
			corev1.TLSPrivateKeyKey:        keyPEM,
			corev1.ServiceAccountRootCAKey: a.Bundle(),
		},
	}, nil
}

// ErrNotManaged is the error of replacing a CA that the user provides.
var ErrNotManaged = errors.New("the CA is not managed by " + ManagedBy)

// Rotate replaces the current CA in its Secret with a successor, and returns the successor. If
// another process has already replaced it, Rotate returns the CA that is in the Secret now.
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
	if !managed(secret) {
		return nil, ErrNotManaged
	}
	next, err := stored.Rotated(o.Lifetime)
	if err != nil {
		return nil, err
	}
	if o.beforeRotate != nil {
		if err := o.beforeRotate(next); err != nil {
			return nil, err
		}
	}
	created, err := next.secretNamed(o.secret())
	if err != nil {
		return nil, err
	}
	err = patchData(ctx, secrets, secret, created.Data)
	switch {
	case apierrors.IsConflict(err):
		return load(ctx, secrets, o.secret())
	case err != nil:
		return nil, fmt.Errorf("replace the CA in the Secret %s: %w", o.secret(), err)
	}
	return next, nil
}

// patchData replaces keys of a Secret. It fails with a conflict if the Secret has changed since it
// was read.
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

// annotationCertManager is on each Secret that cert-manager manages, even on one that it did not
// create.
const annotationCertManager = "cert-manager.io/certificate-name"

// managed reports whether the gateway created a Secret and may change it.
func managed(secret *corev1.Secret) bool {
	_, certManager := secret.Annotations[annotationCertManager]
	return secret.Labels[labelManagedBy] == ManagedBy && !certManager
}
